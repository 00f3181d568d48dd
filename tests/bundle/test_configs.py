"""Settings that no config knows are refused, with the nearest that one knows; what goes wrong is told with its id."""

import pytest
import yaml

from sparse3dunet.bundle import running
from sparse3dunet.bundle.check_settings import check_length, check_literal, check_plain, check_settings, emptied
from sparse3dunet.bundle.running import config_path, parse_settings
from sparse3dunet.errors import DataError
from tests.bundle.test_bundle import error_of
from tests.conftest import ROOT, TINY, run_bundle, run_sparse3dunet, run_training

TRAIN = ROOT / "bundle/configs/train.yaml"
ALL = sorted((ROOT / "bundle/configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "name",
    [
        "max_epochs",
        "resume",
        "train#deform#prob",
        "train::deform::prob",
        "network_def#channels",
        "planned#channels#0",
        "network_def#dropout",  # an argument that the config leaves at its default
        "optimizer#betas",
        "train#log#_disabled_",
        "train#handlers#0",
        "train#dataloader#anything",  # of a function that takes any argument
        "train#dataset#data",
        "experiment_name",  # of --tracking
        "_meta_#version",
        "validate#postprocessing#transforms#1#threshold",
    ],
)
def test_known_settings_pass(name):
    check_settings([TRAIN], {name: None})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epoch", "--epoch: there is no such setting. Did you mean --max_epochs"),
        ("learning-rate", "Did you mean --learning_rate"),
        ("train#deform#displacment", "Did you mean --train#deform#displacement"),
        ("train#defrom#displacement", "--train#defrom: there is no such setting. Did you mean --train#deform"),
        ("network_def#chanels", "Did you mean --network_def#channels"),
        ("optimizer#beta", "Did you mean --optimizer#betas"),
        ("train#weigh#zzz", "There are 0."),
        ("zzzzzz", "See the comments in train.yaml"),
        ("train#handlers#99", "--train#handlers#99: there is no such setting"),
        ("max_epochs#first", "--max_epochs#first: there is no such setting"),
    ],
)
def test_unknown_settings_are_refused(name, words):
    with pytest.raises(DataError) as error:
        check_settings([TRAIN], {name: None})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_text_for_a_number():
    check_settings([TRAIN], {"max_epochs": "$10 * 2", "overlap": 0, "resume": "x"})
    with pytest.raises(DataError, match=r"--max_epochs many: expected a number such as 10"):
        check_settings([TRAIN], {"max_epochs": "many"})


def test_what_other_values_use_can_be_set(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("a: $@given + 1\nb: {c: '%given_too'}\n")
    check_settings([config], {"given": 1, "given_too": 2})
    with pytest.raises(DataError, match="--giben"):
        check_settings([config], {"giben": 1})


def test_overlays(tmp_path):
    """The bundle's own all pass; a plain value in one of somebody's own that nothing uses does not."""
    for path in ALL:
        files = {"evaluate": ["evaluate"], "multi_gpu_evaluate": ["evaluate", "multi_gpu_evaluate"]}
        overlays = [path.with_name(f"{name}.yaml") for name in files.get(path.stem, [path.stem])]
        check_settings([TRAIN, *overlays] if path.stem not in ("train", "inference", "standalone") else [path], {})
    mine = tmp_path / "mine.yaml"
    mine.write_text("max_epoch: 3\n")
    with pytest.raises(DataError, match=r"mine\.yaml: max_epoch: there is no such setting. Did you mean max_epochs"):
        check_settings([TRAIN, mine], {})
    for group in ("lr_schedular: {_target_: x}", "early_stopp: [1]"):
        mine.write_text(group)
        with pytest.raises(DataError, match=r"mine\.yaml: (lr_schedular|early_stopp): there is no such setting. Did"):
            check_settings([TRAIN, mine], {})
    mine.write_text("+train#deform: {probb: 1}")
    with pytest.raises(DataError, match=r"mine\.yaml: train#deform#probb: .* Did you mean train#deform#prob"):
        check_settings([TRAIN, mine], {})
    mine.write_text("margin: 3\nbatch_size: $@margin\nmy: {a: 1}\nmy#b: 3\nseed: $@my#b\nshow: ['$print(1)']\n")
    check_settings([TRAIN, mine], {"my#a": 1, "margin": 2})


def test_a_component_in_anothers_place(tmp_path):
    """What it takes counts, not what the one did that was there before."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("optimizer#_target_: torch.optim.SGD\noptimizer#momentum: 0.9\n")
    check_settings([TRAIN, mine], {"optimizer#nesterov": True})
    check_settings([TRAIN], {"loss#_target_": "monai.losses.TverskyLoss", "loss#alpha": 0.3})
    scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer"}
    check_settings([TRAIN], {"lr_scheduler": scheduler, "lr_scheduler#step_size": 3})
    with pytest.raises(DataError, match=r"--optimizer#momentun: .* Did you mean --optimizer#momentum"):
        check_settings([TRAIN], {"optimizer#_target_": "torch.optim.SGD", "optimizer#momentun": 0.9})


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--a", "1", "--b=[1,2]", "--c"], {"a": 1, "b": [1, 2], "c": True}),
        (["--a", "-1.5", "--b", "x y"], {"a": -1.5, "b": "x y"}),
        (["--a=b=c"], {"a": "b=c"}),
        (
            [
                "--dataset_dir",
                "2024_01",
                "--output_dir=kidney,left",
                "--plan",
                "1e3",
                "--split_file",
                "None",
                "--a=null",
            ],
            {"dataset_dir": "2024_01", "output_dir": "kidney,left", "plan": "1e3", "split_file": None, "a": None},
        ),
        (["--dataset_dir", "['a','b']", "--seed", "2024_01"], {"dataset_dir": ["a", "b"], "seed": 202401}),
        ([], {}),
    ],
)
def test_command_line_is_parsed(arguments, settings):
    assert parse_settings(arguments) == settings


@pytest.mark.parametrize("arguments", [["a"], ["-a", "1"], ["--a", "1", "2"], ["--"], ["--a b", "1"], ["--+a", "1"]])
def test_command_lines_that_are_none(arguments):
    with pytest.raises(DataError, match="expected a setting"):
        parse_settings(arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "$__import__('os').getpid()"),
        ("seed", " @max_epochs"),
        ("seed", "%other.yaml#x"),
        ("seed", [1, ["$2"]]),
        ("loss#_target_", "os.system"),
        ("loss", {"_target_": "os.system"}),
        ("train", {"loss": [{"_target_": "x"}]}),
        ("imports#0", "x"),
        ("initialize", ["x"]),
        ("run", None),
        ("finalize", None),
    ],
)
def test_what_would_run_code_is_no_plain_value(name, value):
    with pytest.raises(DataError, match="--"):
        check_literal(name, value)


def test_plain_values():
    check_literal("seed", 3)
    check_literal("dataset_dir", "a$b@c")
    check_literal("train#log#_disabled_", True)
    check_literal("network_def", {"channels": [1, 2]})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output_dir", "-seed=$__import__('pathlib').Path('MARK').touch()"],
        ["--train#dataloader#x", '{"args": ["touch", "MARK"]}', "--train#dataloader#x#-target-", "subprocess.Popen"],
        ["--read#0#reader", "subprocess.Popen", "--read#0#args", "['touch', 'MARK']"],
        ["--args_file", "mine.yaml"],
        ["--tracking", "mine.yaml"],
        ["--output_dir=x", "--", "--trace"],
    ],
)
def test_our_command_line_runs_no_code(tmp_path, arguments):
    """What is looked at is what is run, also where python-fire would read it otherwise."""
    mark = tmp_path / "mark"
    (tmp_path / "mine.yaml").write_text(f"seed: \"$__import__('pathlib').Path('{mark}').touch()\"\n")
    arguments = [argument.replace("MARK", str(mark)) for argument in arguments]
    result = run_sparse3dunet("run", "training", "--max_epochs", "0", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert not mark.exists()


@pytest.mark.parametrize("setting", ["training", "training#0", "training::0"])
@pytest.mark.parametrize("value", [None, True, []])
def test_a_run_is_no_setting(setting, value):
    """With None for it there would be nothing to run, and no word of it."""
    with pytest.raises(DataError, match=f"--{setting}: this is a list of what to run, not a setting"):
        check_plain([TRAIN], {setting: value})


def test_a_list_that_is_referred_to_is_a_setting(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text('largest_patch_size: ["$8 * 2", "$8 * 2", "$8 * 2"]\n')
    check_plain([TRAIN, own], {"largest_patch_size": [16, 16, 8]})


@pytest.fixture
def nothing_runs(monkeypatch):
    def run_module(*_, **__):
        pytest.fail("it was run")

    monkeypatch.setattr(running.runpy, "run_module", run_module)


def test_parts_of_a_run_are_no_settings(nothing_runs):
    with pytest.raises(DataError, match="--one_fold: this is a list of what to run"):
        running.run_bundle("cross_validating", [], ["--one_fold", "None"])
    with pytest.raises(DataError, match="--training_x: there is no such setting"):
        running.run_bundle("training", [], ["--training_x", "None"])


@pytest.mark.parametrize("value", ["None", "$None", "[]"])
def test_monais_command_line_runs_something(tmp_path, value):
    message = error_of(run_training(tmp_path / "none", tmp_path, "--training", value))
    assert "--training: this is a list of what to run, not a setting; leave it out." in message


CPU = TRAIN.with_name("cpu.yaml")


@pytest.mark.parametrize(
    ("files", "settings", "run", "told"),
    [
        ([TRAIN, CPU], {"max_epochs": 50}, "training", "--max_epochs 50: cpu.yaml sets the training to 10 minutes"),
        ([TRAIN, CPU], {"max_epochs": 50}, None, "--max_epochs 50: cpu.yaml sets"),
        (
            [TRAIN, CPU, TRAIN.with_name("paper.yaml")],
            {},
            "training",
            r"paper.yaml: max_epochs 2800: cpu.yaml .* add --minutes None; for minutes, leave out max_epochs\.",
        ),
        ([TRAIN, TRAIN.with_name("densify.yaml")], {"max_epochs": 2}, "densify", "densify has no epochs"),
    ],
)
def test_epochs_beside_the_minutes_of_a_config(files, settings, run, told):
    """The minutes would end the training, and the epochs be forgotten."""
    with pytest.raises(DataError, match=told):
        check_length(files, settings, run, none="None")


@pytest.mark.parametrize(
    ("files", "settings", "run"),
    [
        ([TRAIN], {"max_epochs": 50}, "training"),
        ([TRAIN, CPU], {"max_epochs": 50, "minutes": None}, "training"),
        ([TRAIN, CPU], {"max_epochs": 50, "minutes": "$None"}, "training"),
        ([TRAIN, CPU], {"batch_size": 1}, "training"),
        ([TRAIN, TRAIN.with_name("paper.yaml")], {"minutes": 5}, "training"),
        ([TRAIN, CPU], {"max_epochs": 50}, "evaluating"),
    ],
)
def test_epochs_or_minutes(files, settings, run):
    check_length(files, settings, run, none="None")


def test_command_lines_with_epochs_beside_minutes(nothing_runs, tmp_path):
    with pytest.raises(DataError, match="add --minutes None;"):
        running.run_bundle("training", ["cpu"], ["--max_epochs", "50"])
    places = ("--dataset_dir", tmp_path / "none", "--output_dir", tmp_path, "--ckpt_dir", tmp_path)
    configs = str([str(TRAIN), str(CPU)])
    result = run_bundle("run", "training", "--config_file", configs, "--max_epochs", 50, *places)
    assert "add --minutes '$None';" in error_of(result)


def test_what_can_be_set_plainly():
    check_plain(
        [TRAIN], {"optimizer#betas": [0.9, 0.99], "network_def#dropout": 0.2, "train#dataloader#num_workers": 1}
    )
    check_plain([TRAIN], {"train#intensity": [], "train#deform": None, "loss#lambda_dice": 0})
    with pytest.raises(DataError, match="--train#dataloader#drop_last: for DataLoader, only arguments in the config"):
        check_plain([TRAIN], {"train#dataloader#drop_last": True})


def test_configs_by_name(tmp_path):
    assert config_path("train").samefile(TRAIN)
    (tmp_path / "own.yaml").write_text("{}")
    assert config_path(str(tmp_path / "own.yaml")) == tmp_path / "own.yaml"
    with pytest.raises(DataError, match=r"the bundle's own are .*train"):
        config_path("nothing")


def test_settings_of_none(trained, tmp_path):
    """MONAI's command line leaves them out. Ours does what they say; the other says so."""
    places = ("--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    settings = ("--minutes", "None", "--val_interval=null", "--spacing", "None")
    words = ("run", "training", "--overlay", "cpu", "--dataset_dir", trained / "dataset", *places, *TINY, *settings)
    result = run_sparse3dunet(*words)
    assert result.returncode == 0, result.stderr
    first, second = (tmp_path / "eval/training.csv").read_text().splitlines()[1:]
    assert first.endswith(",,,")  # no validation but the last
    assert second.startswith("2,4,")
    assert not second.endswith(",,,")
    config = yaml.safe_load((tmp_path / "eval/config.yaml").read_text())
    assert [config[name] for name in ("minutes", "val_interval", "spacing")] == [None] * 3
    message = error_of(run_training(trained / "dataset", tmp_path, "--val_interval", "None"))
    assert "--val_interval None: MONAI ignores settings of None, and val_interval would stay 2" in message
    message = error_of(run_training(trained / "dataset", tmp_path, "--spacing", "null"))
    assert "--spacing null: on this command line null is a text; pass --spacing '$None'" in message


@pytest.mark.parametrize(
    ("name", "files", "stays"),
    [
        ("minutes", ["train"], None),
        ("minutes", ["train", "cpu"], "10"),
        ("val_interval", ["train"], "2"),
        ("val_interval", ["train", "crossval"], None),
        ("network_def::norm", ["train"], "['instance', {'affine': True}]"),
        ("network_def#act", ["train"], "at its default"),
        ("train#gray_values#noise#prob", ["train"], "0.15"),
        ("run_id", ["train"], None),
    ],
)
def test_what_a_setting_of_none_would_stay(name, files, stays):
    paths = [config_path(file) for file in files]
    assert emptied(paths, {name: None, "seed": 1}) == ({} if stays is None else {name: stays})


def test_nones_beside_a_file_of_arguments(trained, tmp_path):
    """What they would stay is what that file says."""
    (tmp_path / "args.yaml").write_text("minutes: 7\nval_interval: null")
    nones = ("--args_file", tmp_path / "args.yaml", "--val_interval", "None", "--minutes", "None")
    assert "minutes would stay 7" in error_of(run_training(trained / "dataset", tmp_path, *nones))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (("--epoch", 2), "--epoch: there is no such setting. Did you mean --max_epochs"),
        (("--network_def#channels", "abc"), "channels is 'abc'; expected a whole number above 0"),
        (("--loss#_target_", "torch.nn.Foo"), "loss (torch.nn.Foo): ModuleNotFoundError: Cannot locate"),
        (("--val_interval", "$1/0"), "val_interval ($1/0): ZeroDivisionError: division by zero"),
    ],
)
def test_monais_own_command_line_tells_it_in_a_line(trained, tmp_path, setting, words):
    message = error_of(run_training(trained / "dataset", tmp_path, *setting))
    assert words in message
    assert len(message) < 500


def test_our_command_line_trains(trained, tmp_path):
    """From any folder, with an overlay of any other, and with its faults told before anything begins."""
    places = (
        "--dataset_dir",
        trained / "dataset",
        "--output_dir",
        tmp_path / "eval",
        "--ckpt_dir",
        tmp_path / "models",
    )

    def run(*more):
        words = ("run", "training", "--overlay", ROOT / "benchmarks/rand3delastic.yaml", *places, *TINY, *more)
        return run_sparse3dunet(*words, cwd=tmp_path, real="--seed" in more)

    result = run("--margin", 2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "models/model.pt").is_file()
    for setting in (("--train#defrom#prob", 1), ("--seed", "$1")):
        result = run(*setting)
        assert result.returncode == 1
        assert result.stderr.startswith("error: --")
        assert result.stderr.count("\n") == 1
