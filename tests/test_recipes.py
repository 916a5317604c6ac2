"""The shell script of every published row: the command that it runs, its errors, and the table that ends it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataloaders.data_dataloaders import DATALOADER_DICT
from main_task_retrieval import get_args
from scripts.miniature.msrvtt import write_mini_msrvtt
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from scripts.recipes.recipe_table import main as print_table
from scripts.recipes.recipe_table import table
from tests.helpers.results import results_of, write_results

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "scripts" / "recipes"
SETTINGS = (
    "DATA_PATH", "FEATURES_PATH", "NPROC", "OUTPUT", "CLIP", "DRY_RUN", "CHECKPOINT", "SIM_HEADER", "AGG_MODULE",
    "RANK", "LOCAL_RANK", "WORLD_SIZE",
)  # fmt: skip

SHORT, LONG = (32, 12), (64, 64)  # --max_words, --max_frames
# script: --datatype, --sim_header, --agg_module, --cdcr, lengths
ROWS = {
    "clip4clip_msrvtt_meanP": ("msrvtt", "meanP", "none", 0, SHORT),
    "clip4clip_msrvtt_seqLSTM": ("msrvtt", "seqLSTM", "none", 0, SHORT),
    "clip4clip_msrvtt_seqTransf": ("msrvtt", "seqTransf", "none", 0, SHORT),
    "clip4clip_msrvtt_tightTransf": ("msrvtt", "tightTransf", "none", 0, SHORT),
    "clip4clip_msvd_meanP": ("msvd", "meanP", "none", 0, SHORT),
    "clip4clip_msvd_seqLSTM": ("msvd", "seqLSTM", "none", 0, SHORT),
    "clip4clip_msvd_seqTransf": ("msvd", "seqTransf", "none", 0, SHORT),
    "clip4clip_msvd_tightTransf": ("msvd", "tightTransf", "none", 0, SHORT),
    "clip4clip_lsmdc_meanP": ("lsmdc", "meanP", "none", 0, SHORT),
    "clip4clip_lsmdc_seqLSTM": ("lsmdc", "seqLSTM", "none", 0, SHORT),
    "clip4clip_lsmdc_seqTransf": ("lsmdc", "seqTransf", "none", 0, SHORT),
    "clip4clip_lsmdc_tightTransf": ("lsmdc", "tightTransf", "none", 0, SHORT),
    "clip4clip_activity_meanP": ("activity", "meanP", "none", 0, LONG),
    "clip4clip_activity_seqLSTM": ("activity", "seqLSTM", "none", 0, LONG),
    "clip4clip_activity_seqTransf": ("activity", "seqTransf", "none", 0, LONG),
    "clip4clip_activity_tightTransf": ("activity", "tightTransf", "none", 0, LONG),
    "clip4clip_didemo_meanP": ("didemo", "meanP", "none", 0, LONG),
    "clip4clip_didemo_seqLSTM": ("didemo", "seqLSTM", "none", 0, LONG),
    "clip4clip_didemo_seqTransf": ("didemo", "seqTransf", "none", 0, LONG),
    "clip4clip_didemo_tightTransf": ("didemo", "tightTransf", "none", 0, LONG),
    "drl_msrvtt_zeroshot": ("msrvtt", "meanP", "none", 0, SHORT),
    "drl_msrvtt_dp": ("msrvtt", "meanP", "none", 0, SHORT),
    "drl_msrvtt_dp_seqTransf": ("msrvtt", "seqTransf", "none", 0, SHORT),
    "drl_msrvtt_ti_seqTransf": ("msrvtt", "ti", "seqTransf", 0, SHORT),
    "drl_msrvtt_wti_seqTransf": ("msrvtt", "wti", "seqTransf", 0, SHORT),
    "drl_msrvtt_wti_seqTransf_cdcr": ("msrvtt", "wti", "seqTransf", 3, SHORT),
    "drl_msrvtt_xti_seqTransf": ("msrvtt", "xti", "seqTransf", 0, SHORT),
    "drl_msrvtt_wti_seqTransf_vitb16": ("msrvtt", "wti", "seqTransf", 0, SHORT),
    "drl_msrvtt_wti_seqTransf_cdcr_vitb16": ("msrvtt", "wti", "seqTransf", 3, SHORT),
    "eval_msrvtt": ("msrvtt", "wti", "seqTransf", 0, SHORT),
    "eval_msvd": ("msvd", "wti", "seqTransf", 0, SHORT),
    "eval_lsmdc": ("lsmdc", "wti", "seqTransf", 0, SHORT),
    "eval_activity": ("activity", "wti", "seqTransf", 0, LONG),
    "eval_didemo": ("didemo", "wti", "seqTransf", 0, LONG),
}
# below DATA_PATH: the folder of the videos, files of the test split, files of the training split
FILES = {
    "msrvtt": ("MSRVTT_Videos", ["MSRVTT_JSFUSION_test.csv"], ["MSRVTT_train.9k.csv", "MSRVTT_data.json"]),
    "msvd": ("MSVD_Videos", ["test_list.txt", "raw-captions.pkl"], ["train_list.txt"]),
    "lsmdc": ("LSMDC_Videos", ["LSMDC16_challenge_1000_publictect.csv"], ["LSMDC16_annos_training.csv"]),
    "activity": ("Activity_Videos", ["val_ids.json", "val_1.json"], ["train_ids.json", "train.json"]),
    "didemo": ("DiDeMo_Videos", ["test_list.txt", "test_data.json"], ["train_list.txt", "train_data.json"]),
}
WTI_CHECKPOINT = {"CHECKPOINT": "a checkpoint.bin", "SIM_HEADER": "wti", "AGG_MODULE": "seqTransf"}


def only_evaluates(name: str) -> bool:
    return name.startswith("eval_") or name == "drl_msrvtt_zeroshot"


def run_script(name: str, *flags, timeout: float = 60, cwd=None, **settings) -> subprocess.CompletedProcess:
    """`scripts/NAME.sh FLAGS` with these settings only, in the environment that runs the tests, without a GPU."""
    inherited = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    fixed = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", SCRIPTS / f"{name}.sh", *map(str, flags)], capture_output=True, text=True, timeout=timeout, cwd=cwd,
        env={**inherited, **fixed, **{key: str(value) for key, value in settings.items()}},
    )  # fmt: skip


def command_of(name: str, *flags, **settings) -> list[str]:
    """The arguments of the command that the script would run."""
    given = {"DRY_RUN": "1", "NPROC": "1", "DATA_PATH": "/data/of mine", **WTI_CHECKPOINT, **settings}
    finished = run_script(name, *flags, **given)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.splitlines()


def parse(command: list[str]):
    """What `main_task_retrieval.py` makes of the command."""
    start = command.index(str(REPOSITORY / "main_task_retrieval.py"))
    return get_args(command[start + 1 :])


def skip_without_reader(name: str) -> None:
    if ROWS[name][0] not in DATALOADER_DICT:
        pytest.skip(f"--datatype {ROWS[name][0]} has no reader in this checkout")


# ---- the command -------------------------------------------------------------------------------------------------


def test_every_script_has_its_row_here():
    found = {path.stem for pattern in ("clip4clip_*", "drl_*", "eval_*") for path in SCRIPTS.glob(f"{pattern}.sh")}
    assert found == set(ROWS)


def test_shell_syntax():
    for path in sorted(SCRIPTS.glob("*.sh")):
        finished = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert (finished.returncode, finished.stderr) == (0, ""), path
        if path.stem in ROWS:
            assert os.access(path, os.X_OK), path


@pytest.mark.parametrize("name", ROWS)
def test_command(name):
    skip_without_reader(name)
    datatype, head, agg_module, cdcr, (words, frames) = ROWS[name]
    command = command_of(name)
    args = parse(command)
    videos, *_ = FILES[datatype]
    expected = {
        "datatype": datatype, "sim_header": head, "agg_module": agg_module, "cdcr": cdcr, "max_words": words,
        "max_frames": frames, "slice_framepos": 2, "feature_framerate": 1, "linear_patch": "2d", "wti_arch": 2,
        "wti_padding": "zero", "cross_num_hidden_layers": 4, "gradient_accumulation_steps": 1,
        "pretrained_clip_name": "ViT-B/16" if name.endswith("vitb16") else "ViT-B/32",
        "features_path": f"/data/of mine/{videos}", "output_dir": f"ckpts/{name}",
        "data_path": "/data/of mine/MSRVTT_data.json" if datatype == "msrvtt" else "/data/of mine",
        "do_train": not only_evaluates(name), "do_eval": only_evaluates(name),
        "init_model": WTI_CHECKPOINT["CHECKPOINT"] if name.startswith("eval_") else None,
    }  # fmt: skip
    if datatype == "msrvtt":
        expected["train_csv"] = "/data/of mine/MSRVTT_train.9k.csv"
        expected["val_csv"] = "/data/of mine/MSRVTT_JSFUSION_test.csv"
        expected["expand_msrvtt_sentences"] = True
    if not only_evaluates(name):
        expected |= {"epochs": 5, "batch_size": 128, "lr": 1e-4, "coef_lr": 1e-3, "freeze_layer_num": 0}
    if cdcr:
        expected |= {"cdcr_alpha1": 0.11, "cdcr_alpha2": 0.0, "cdcr_lambda": 0.001}
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.unread_flags == []
    # a default that is ours, not DRL's, must not decide
    assert ("--cdcr" in command) == name.startswith("drl_")


def test_settings_and_flags_of_the_user():
    settings = {"FEATURES_PATH": "/v", "OUTPUT": "runs/a b", "CLIP": "ViT-L/14"}
    args = parse(command_of("drl_msrvtt_wti_seqTransf_vitb16", "--epochs", "1", "--cdcr", "2", **settings))
    assert (args.features_path, args.output_dir, args.pretrained_clip_name) == ("/v", "runs/a b", "ViT-L/14")
    assert (args.epochs, args.cdcr) == (1, 2)


@pytest.mark.parametrize("name", ["clip4clip_msrvtt_meanP", "eval_msrvtt", "drl_msrvtt_zeroshot"])
@pytest.mark.parametrize("processes", [1, 4])
def test_processes(name, processes):
    start = command_of(name, NPROC=processes)
    start = start[: start.index(str(REPOSITORY / "main_task_retrieval.py"))]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    assert start == [sys.executable, *(launcher if processes > 1 else [])]


def test_one_process_without_a_gpu():
    assert command_of("clip4clip_msrvtt_meanP", NPROC="")[1] == str(REPOSITORY / "main_task_retrieval.py")


def test_videos_folder(tmp_path):
    """CLIP4Clip's name goes first, then `videos`."""
    (tmp_path / "videos").mkdir()
    assert parse(command_of("eval_msrvtt", DATA_PATH=tmp_path)).features_path == str(tmp_path / "videos")
    (tmp_path / "MSRVTT_Videos").mkdir()
    assert parse(command_of("eval_msrvtt", DATA_PATH=tmp_path)).features_path == str(tmp_path / "MSRVTT_Videos")


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_without_data_path_the_tree_is_shown(name):
    finished = run_script(name, NPROC=1, **WTI_CHECKPOINT)
    videos, test_files, train_files = FILES[ROWS[name][0]]
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith(f"{name}.sh: set DATA_PATH to the folder of the {ROWS[name][0]} annotations")
    tree = re.findall(r"^[├└]── ([^ /\n]+)", finished.stderr, re.MULTILINE)
    assert tree == [*test_files, *([] if only_evaluates(name) else train_files), videos]


@pytest.mark.parametrize("name", ["clip4clip_didemo_meanP", "eval_didemo"])
def test_each_missing_file_is_named(tmp_path, name):
    videos, test_files, train_files = FILES["didemo"]
    for file in [*test_files, *([] if only_evaluates(name) else train_files), videos]:
        finished = run_script(name, DATA_PATH=tmp_path, NPROC=1, **WTI_CHECKPOINT)
        assert finished.returncode == 2
        assert finished.stderr.startswith(f"{name}.sh: {tmp_path / file} does not exist; DATA_PATH={tmp_path} should")
        (tmp_path / file).touch()


@pytest.mark.parametrize("absent", ["CHECKPOINT", "SIM_HEADER"])
def test_evaluation_needs_the_checkpoint_and_its_head(absent):
    finished = run_script("eval_msvd", DATA_PATH="/data", NPROC=1, **{**WTI_CHECKPOINT, absent: ""})
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"eval_msvd.sh: set {absent}")


@pytest.mark.parametrize("flags", [["--output_dir", "x"], ["--output_dir=x"], ["--epochs", "1", "--out", "x"]])
def test_the_output_folder_is_a_setting(flags):
    """With the flag, the closing table would read the results of another run."""
    finished = run_script("clip4clip_msrvtt_meanP", *flags, DATA_PATH="/data", DRY_RUN=1, NPROC=1)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "clip4clip_msrvtt_meanP.sh: use OUTPUT=FOLDER instead of --out" in finished.stderr


@pytest.mark.parametrize("processes", ["0", "two", "-1"])
def test_bad_number_of_processes(processes):
    finished = run_script("clip4clip_msrvtt_meanP", DATA_PATH="/data", DRY_RUN=1, NPROC=processes)
    assert finished.returncode == 2
    assert f"NPROC={processes} must be" in finished.stderr


# ---- the table ---------------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_keeps_published_and_this_run_apart(tmp_path):
    best = {"epoch": 0, "checkpoint": "out/pytorch_model.bin.0", "R1": 1.0}
    results = write_results(tmp_path, [1.04, 2.0, 3.0, 3.5, 4.0, 5.06], [6.0, 7.0, 8.0, 8.5, 9.0, 10.0], best)
    published = [["WTI", "DRL's README", "46.6/73.4/83.5/2/13.0", ""]]
    header, _, theirs, ours, note, picked = table(published, tmp_path).splitlines()
    assert cells(theirs) == ["published", "WTI", "46.6", "73.4", "83.5", "2", "13.0", *"-----", "DRL's README"]
    assert cells(ours) == [
        "this run", "last evaluation", "1.0", "2.0", "3.0", "4.0", "5.1", "6.0", "7.0", "8.0", "9.0", "10.0",
        str(results),
    ]  # fmt: skip
    assert len({len(line) for line in (header, theirs, ours)}) == 1
    assert note.startswith("-: no figure")
    assert picked == (
        "this run: best epoch 0, text-to-video R@1 1.0 on the test split, which picked it: out/pytorch_model.bin.0"
    )


def test_an_evaluation_alone_picks_nothing(tmp_path):
    write_results(tmp_path, [1.5] * 6, [6.0] * 6)
    assert "picked" not in table([["WTI", "DRL's README", "", ""]], tmp_path)


def test_table_before_the_run_has_no_row_of_ours(capsys):
    print_table(["--published", "WTI", "DRL's README", "46.6/73.4/83.5/2/13.0", "45.4/73.4/81.9/2/9.2"])
    printed = capsys.readouterr().out
    assert "| published | WTI " in printed and "this run |" not in printed and "no figure" not in printed
    assert printed.endswith("those of this run follow when it has ended.\n")


def test_a_row_without_figures_points_to_its_source():
    row, _ = table([["tightTransf", "the paper", "", ""]]).splitlines()[2:]
    assert cells(row) == ["published", "tightTransf", *"----------", "see the paper"]


def test_bad_figures_and_a_run_without_results_are_errors(tmp_path):
    with pytest.raises(SystemExit, match="recipe_table: figures are .*46.6/73.4"):
        print_table(["--published", "WTI", "DRL", "46.6/73.4", ""])
    with pytest.raises(SystemExit, match=f"recipe_table: {tmp_path}.*metrics.json"):
        print_table(["--published", "WTI", "DRL", "", "", "--run", str(tmp_path)])


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("eval_")])
def test_published_figures(name):
    """Each row has a source; figures come from the two READMEs they were copied from; DRL's are those in ours."""
    lines = [line for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if line.startswith("published ")]
    assert lines
    for line in lines:
        label, source, figures = re.fullmatch(r'published "([^"]+)" "([^"]+)"((?: [\d./-]+)*)', line).groups()
        for direction in figures.split():
            assert len(direction.split("/")) == 5
        assert bool(figures) == (source in ("$DRL", "MMAction2's README"))
        if name.startswith("drl_") and label in ("TI + seqTransf", "WTI + seqTransf"):
            row = next(row for row in (REPOSITORY / "README.md").read_text().splitlines() if f"| {label} |" in row)
            assert [cell.replace(" ", "") for cell in cells(row)[1:3]] == figures.split()


# ---- a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_and_evaluate_a_miniature(tmp_path):
    """In two processes from another folder, then its checkpoint in one: the same numbers, below the published ones."""
    data = tmp_path / "mini msrvtt"
    write_mini_msrvtt(data, train_videos=24, test_videos=9, captions_per_video=2)
    shutil.move(data / "MSRVTT_train.csv", data / "MSRVTT_train.9k.csv")
    shutil.move(data / "MSRVTT_test.csv", data / "MSRVTT_JSFUSION_test.csv")
    torch.save(
        tiny_clip_state_dict(
            embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
        ),
        tmp_path / "clip.pt",
    )
    small = ["--max_words", 16, "--max_frames", 3, "--cross_num_hidden_layers", 1, "--num_thread_reader", 0]
    settings = {"DATA_PATH": data.name, "CLIP": "clip.pt", "cwd": tmp_path, "timeout": 300}
    trained = run_script(
        "drl_msrvtt_wti_seqTransf", *small, "--epochs", 1, "--batch_size", 12, NPROC=2, OUTPUT="out", **settings
    )
    assert trained.returncode == 0, trained.stderr
    before, after = trained.stdout.split("These figures were published by others", 1)
    theirs = next(line for line in before.splitlines() if line.startswith("| published |"))
    assert cells(theirs)[1:3] == ["WTI + seqTransf", "46.6"] and "this run  |" not in before
    results = results_of(tmp_path / "out")
    numbers = [f"{direction[name]:.1f}" for direction in results for name in ("R1", "R5", "R10", "MdR", "MnR")]
    ours = next(line for line in after.splitlines() if line.startswith("| this run"))
    assert cells(ours)[2:] == [*numbers, "out/metrics.json"]
    assert "| published |" in after and "which picked it: out/pytorch_model.bin.0" in after

    evaluated = run_script(
        "eval_msrvtt", *small, NPROC=1, CHECKPOINT="out/pytorch_model.bin.0", SIM_HEADER="wti", AGG_MODULE="seqTransf",
        **settings,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert results_of(tmp_path / "ckpts" / "eval_msrvtt") == results
    rows = [cells(line)[1] for line in evaluated.stdout.splitlines() if line.startswith("| published")]
    assert {"CLIP4Clip tightTransf", "zero-shot", "WTI + seqTransf + CDCR"} <= set(rows)
    assert cells(evaluated.stdout.splitlines()[-2])[2:-1] == numbers


def test_a_failed_run_prints_no_table(tmp_path):
    """The exit code is that of the run."""
    for file in ("MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv", "MSRVTT_data.json", "MSRVTT_Videos"):
        (tmp_path / file).touch()
    finished = run_script("clip4clip_msrvtt_meanP", "--batch_size", "0", DATA_PATH=tmp_path, NPROC=1, cwd=tmp_path)
    assert finished.returncode == 2
    assert "--batch_size 0 must be at least 1" in finished.stderr
    assert "| published" in finished.stdout and "| this run" not in finished.stdout
