"""Run the commands of a page of the documentation, from top to bottom, in a copy of the checkout.

    python -m tests.docs.commands                                  # every page
    python -m tests.docs.commands docs/densify.md --environment E  # in a new environment, made in the folder E

The files that the commands name (`scan.nii.gz`, `MY_DATA`, ...) are made of the built-in scan at 6 mm. Commands take
less time than on the page: fewer minutes, iterations and processes, which is printed. A block is not run if
`<!-- not run: REASON -->` stands before it, and the commands of one before which `<!-- until: TEXT -->` stands are
ended once they have printed the text. `pip install` is run with --environment alone.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs.placeholders import make_files

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|until): (?P<text>.+?) -->\n+)?^```(?P<kind>.*)\n(?P<code>(?:.*\n)*?)^```$", re.M
)
EXTRAS = "annotate,demo,dicom,microscopy,tracking"
SHORTER = (
    (re.compile(r"--minutes \d+"), "--minutes 0.5"),
    (re.compile(r"--folds \d+"), "--folds 2"),
    (re.compile(r"--nproc_per_node 4"), "--nproc_per_node 2"),
)
ITERATIONS = "--max_epochs 1 --epoch_length 2 --val_interval 1 --num_workers 0"
MOST = 1500
"""Seconds that a block may take."""


@dataclass(frozen=True)
class Block:
    """Block of commands of a page.

    Attributes:
        page: file, relative to the checkout.
        line: number of the first line of the commands.
        code: the commands.
        reason: why it is not run; empty if it is.
        until: text after which the commands are ended; empty for none.
    """

    page: str
    line: int
    code: str
    reason: str = ""
    until: str = ""


def fences(page: Path) -> list[re.Match[str]]:
    """Return the blocks of code of a page, of any language."""
    return list(FENCE.finditer(page.read_text(encoding="utf-8")))


def blocks(page: Path) -> list[Block]:
    """Return the blocks of commands of a page."""
    found = []
    for fence in fences(page):
        if fence["kind"] == "bash":
            line = fence.string[: fence.start("code")].count("\n") + 1
            marks = {fence["mark"]: fence["text"]} if fence["mark"] else {}
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, fence["code"], marks.get("not run", ""), marks.get("until", "")))
    return found


def pages() -> list[Path]:
    """Return the pages that have commands to be run."""
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in candidates if any(not block.reason for block in blocks(page))]


def shortened(code: str, fresh: bool) -> str:
    """Return the commands with less work, one a line, without `pip install` unless the environment is new."""
    lines = []
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("pip install") and not fresh:
            continue
        for pattern, replacement in SHORTER:
            line = pattern.sub(replacement, line)
        command, hash_sign, comment = line.partition("   #")
        trains = re.search(r"run (training|cross_validating)", command)
        if trains and "--minutes" not in command:
            command += f" {ITERATIONS}"
        if re.search(r"sparse3dunet densify|run densify|sparse3dunet annotate", command) and "--minutes" not in command:
            command += " --minutes 0.5"
        lines.append(command + hash_sign + comment)
    return "\n".join(lines) + "\n"


def new_environment(folder: Path) -> Path:
    """Install the package into a new environment, unless it is there, and return the folder of its programs."""
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if (programs / "sparse3dunet").exists():
        return programs
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [programs / "python", "-m", "pip", "install", "--quiet", f"{ROOT}[{EXTRAS}]"]
    subprocess.run(list(map(str, install)), check=True)
    return programs


def run_block(block: Block, folder: Path, environment: dict[str, str], fresh: bool) -> None:
    """Run a block of commands in a folder.

    Raises:
        AssertionError: when a command fails, or takes too long; with its output.
    """
    code = shortened(block.code, fresh)
    where, started = f"{block.page}:{block.line}", time.monotonic()
    log = folder / "output.txt"
    with log.open("w", encoding="utf-8") as out:
        command = ["bash", "-euo", "pipefail", "-c", code]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() - started < MOST:
                if block.until and block.until in log.read_text(encoding="utf-8"):
                    break
                time.sleep(0.2)
            ended = process.poll()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    output = log.read_text(encoding="utf-8")
    good = ended == 0 or (block.until and block.until in output)
    assert good, f"{where}: exit status {ended}\n{code}\n{output[-4000:]}"
    print(f"{where}: {time.monotonic() - started:.0f} s\n    " + code.strip().replace("\n", "\n    "), flush=True)


def run_page(page: Path, folder: Path, programs: Path | None = None) -> None:
    """Run a page's blocks in a folder with a copy of the checkout and the files that the commands name.

    Args:
        page: Markdown file in the checkout.
        folder: an empty folder.
        programs: folder of the programs of a new environment; None for the present one, with the checkout's package.
    """
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    path = [str(programs or Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore", "BROWSER": "true"}
    environment.pop("PYTHONPATH", None)
    if programs is None:
        environment["PYTHONPATH"] = str(ROOT / "pipeline")
    make_files(folder, environment, "\n".join(block.code for block in blocks(page)))
    for block in blocks(page):
        if block.reason:
            print(f"{block.page}:{block.line}: not run: {block.reason}", flush=True)
        else:
            run_block(block, folder, environment, programs is not None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pages given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", help="Markdown files; default: all")
    told = "run in a new environment in this folder, with the package installed; it stays. Default: the present one"
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help=told)
    given = parser.parse_args(arguments)
    failed = []
    programs = new_environment(given.environment.resolve()) if given.environment else None
    for page in [path.resolve() for path in given.pages] or pages():
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_page(page, Path(folder), programs)
            except AssertionError as error:
                print(f"FAILED {error}", flush=True)
                failed.append(page.name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
