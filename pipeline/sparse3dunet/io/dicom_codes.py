"""SNOMED CT codes of classes, by their names, for results in DICOM.

The codes are those of pydicom's copy of DICOM's context groups. A class with another name gets the general code of
tissue, unless its name ends with a code: ``liver (SCT:10200004)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SYNONYMS = {
    "gall bladder": "Gallbladder",
    "urinary bladder": "Bladder",
    "thyroid gland": "Thyroid",
    "parotid": "ParotidGland",
    "adrenal": "AdrenalGland",
    "small bowel": "SmallIntestine",
    "oesophagus": "Esophagus",
    "brainstem": "BrainStem",
    "grey matter": "GrayMatter",
    "csf": "CerebrospinalFluid",
    "vena cava": "InferiorVenaCava",
    "tumor": "Neoplasm",
    "tumour": "Neoplasm",
    "vessel": "BloodVessel",
}
"""Keywords of pydicom by other usual names."""
ORGANS = (
    *(
        "Liver",
        "Spleen",
        "Kidney",
        "Pancreas",
        "Stomach",
        "Gallbladder",
        "Aorta",
        "Heart",
        "Lung",
        "Brain",
        "Esophagus",
    ),
    *("Bladder", "Prostate", "Bone", "AdrenalGland", "Colon", "Duodenum", "SmallIntestine", "Rectum"),
    *("Trachea", "Vertebra", "SpinalCord", "Thyroid", "ParotidGland", "Uterus", "Femur", "Mandible", "Rib", "Sacrum"),
    *(
        "LymphNode",
        "Hippocampus",
        "Cerebellum",
        "BrainStem",
        "BrainVentricle",
        "LeftVentricle",
        "RightVentricle",
        "LeftAtrium",
    ),
    *("Artery", "Vein", "BloodVessel", "PortalVein", "InferiorVenaCava", "Bronchus"),
    *("Breast", "Eye", "Tooth", "Skin"),
)
TISSUES = ("Muscle", "SkeletalMuscle", "Fat", "GrayMatter", "WhiteMatter", "Cartilage", "CerebrospinalFluid")
ABNORMAL = ("Neoplasm", "Mass", "Lesion", "Cyst", "Nodule", "Edema", "Necrosis", "Hemorrhage")
CATEGORIES = {
    **dict.fromkeys(ORGANS, "AnatomicalStructure"),
    **dict.fromkeys(TISSUES, "Tissue"),
    **dict.fromkeys(ABNORMAL, "MorphologicallyAbnormalStructure"),
}
GIVEN = re.compile(r"\s*\(SCT:(\d{6,18})\)$")


@dataclass(frozen=True)
class ClassCode:
    """What a class is.

    Attributes:
        label: its name without a code.
        category: code of the category.
        kind: code of the structure.
        side: code of left or right; None if the name has neither.
    """

    label: str
    category: Code
    kind: Code
    side: Code | None = None


def class_code(name: str) -> ClassCode:
    """Return the codes of a class by its name: "Liver", "left kidney", "kidney_left", "x (SCT:10200004)"."""
    given = GIVEN.search(name)
    if given:
        label = name[: given.start()].strip() or given[1]
        return ClassCode(label, codes.SCT.AnatomicalStructure, Code(given[1], "SCT", label))
    words = re.sub(r"[\W_]+", " ", name.lower()).split()
    sides = [word for word in words if word in ("left", "right")]
    plain = " ".join(word for word in words if word not in sides)
    for text in (" ".join(words), plain):
        for one in (text, text.removesuffix("s"), text.removesuffix("es")):
            keyword = SYNONYMS.get(one, one.title().replace(" ", ""))
            if keyword in CATEGORIES:
                has_side = len(sides) == 1 and text == plain
                side = getattr(codes.SCT, sides[0].title()) if has_side else None
                return ClassCode(name, getattr(codes.SCT, CATEGORIES[keyword]), getattr(codes.SCT, keyword), side)
    return ClassCode(name, codes.SCT.Tissue, codes.SCT.Tissue)


def code_item(code: Code) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning[:64],
    )
    return item
