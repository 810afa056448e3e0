"""A clone becomes a project of one's own, and takes over newer versions of the template without losing a line."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from project.cli import main
from project.errors import UserError
from project.own_project import start, update

ROOT = Path(__file__).parents[1]
CODE = "project/training.py"
LINES = [f"line {i}" for i in range(30)]


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def commit(folder: Path, **files: str) -> None:
    for name, text in files.items():
        write(folder / name, text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "change")


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A small repository with the files of the template that `start` and `update` know."""
    for name, value in {"NAME": "Ada", "EMAIL": "ada@example.org"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    folder = tmp_path / "template"
    for name in ("README.md", "LICENSE", "CITATION.cff", "pyproject.toml"):
        write(folder / name, (ROOT / name).read_text())
    for name in ("unet_mse", "unet_dice", "unet_ihc", "baseline_mean"):
        write(folder / f"configs/experiments/{name}.yaml", f"# {name}\na: 1\n")
    for name in ("data/yeast.yaml", "data/ihc.yaml", "default.yaml", "tune/unet_mse.yaml"):
        write(folder / "configs" / name, "a: 1\n")
    write(folder / CODE, "\n".join(LINES))
    git(tmp_path, "init", "--quiet", str(folder))
    commit(folder)
    return folder


@pytest.fixture
def clone(template, tmp_path, monkeypatch):
    """A clone of the template, and the working folder."""
    git(tmp_path, "clone", "--quiet", str(template), "mine")
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def change_template(template: Path) -> None:
    """The second version: the last line of the code, an experiment and the README differ; an experiment is new."""
    files = {
        CODE: "\n".join([*LINES[:-1], "new"]),
        "configs/experiments/unet_mse.yaml": "# unet_mse\na: 2\n",
        "configs/experiments/unet_dice.yaml": "# unet_dice\na: 2\n",
        "configs/experiments/further.yaml": "a: 1\n",
        "README.md": (template / "README.md").read_text() + "More.\n",
        "LICENSE": "changed\n",
    }
    commit(template, **files)


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("demo", [True, False])
def test_a_clone_becomes_a_project(clone, demo, fresh):
    template = git(clone, "rev-parse", "HEAD").strip()
    start("my_study", "Ada L.", demo=demo, fresh_history=fresh)
    assert 'name = "my-study"' in lines("pyproject.toml")
    assert lines("README.md")[0] == "# My study"
    assert Path("TEMPLATE.md").read_text() == (ROOT / "README.md").read_text()
    assert any("Ada L." in line for line in lines("CITATION.cff"))
    assert any(line.startswith("Copyright") and line.endswith("Ada L.") for line in lines("LICENSE"))
    assert json.loads(Path(".template.json").read_text())["commit"] == template
    names = {path.stem for path in Path("configs/experiments").iterdir()}
    assert names == ({"unet_mse", "baseline_mean"} | ({"unet_dice", "unet_ihc"} if demo else set()))
    assert Path("tests/template/configs/experiments/unet_ihc.yaml").is_file()  # the tests have all
    assert git(clone, "status", "--porcelain") == ""
    assert len(git(clone, "log", "--format=%H").split()) == (1 if fresh else 2)


def test_what_was_new_before_the_start_is_neither_committed_nor_deleted(clone):
    new = ["configs/data/mine.yaml", "configs/experiments/mine.yaml", "images/a.tif"]
    for name in new:
        write(clone / name, "a: 1\n")
    start("my_study", demo=False)
    assert git(clone, "status", "--porcelain", "--untracked-files=all").splitlines() == [f"?? {name}" for name in new]


def test_a_name_that_is_no_name_is_refused(clone):
    before = git(clone, "rev-parse", "HEAD")
    for name in ("", "2cells", "my study", "a/b", "-x"):
        with pytest.raises(UserError, match="such as my_study"):
            start(name)
    Path(CODE).write_text("changed\n")
    with pytest.raises(UserError, match="commit your changes first"):
        start("my_study")
    assert git(clone, "rev-parse", "HEAD") == before
    assert not Path(".template.json").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_an_update_brings_the_changes_of_the_template(clone, template, fresh):
    start("my_study", fresh_history=fresh)
    readme = Path("README.md").read_text()
    change_template(template)
    assert update()
    assert lines(CODE)[-1] == "new"
    assert lines("configs/experiments/unet_mse.yaml")[-1] == "a: 2"
    assert lines("tests/template/configs/experiments/unet_mse.yaml")[-1] == "a: 2"
    assert Path("configs/experiments/further.yaml").is_file()
    assert lines("TEMPLATE.md")[-1] == "More."
    assert Path("README.md").read_text() == readme
    assert Path("LICENSE").read_text() != "changed\n"
    assert 'name = "my-study"' in lines("pyproject.toml")
    assert git(clone, "status", "--porcelain") == ""
    assert update()  # a second time: nothing to do


def test_changed_training_code_is_merged_line_by_line(clone, template):
    start("my_study")
    commit(clone, **{CODE: "\n".join(["mine", *LINES[1:]])})
    change_template(template)
    assert update()
    assert lines(CODE) == ["mine", *LINES[1:-1], "new"]


def test_a_moved_file_gets_the_change_at_its_new_name(clone, template):
    start("my_study")
    git(clone, "mv", CODE, "project/my_training.py")
    commit(clone)
    change_template(template)
    assert update()
    assert lines("project/my_training.py")[-1] == "new"
    assert not Path(CODE).exists()


def test_a_deleted_demo_stays_deleted_and_a_changed_experiment_unchanged(clone, template, capsys):
    start("my_study", demo=False)
    git(clone, "mv", "configs/experiments/unet_mse.yaml", "configs/experiments/renamed.yaml")
    commit(clone, **{"configs/experiments/baseline_mean.yaml": "mine\n", "configs/default.yaml": "a: 7\n"})
    change_template(template)
    commit(template, **{"configs/default.yaml": "a: 8\n"})
    assert update()
    names = {path.stem for path in Path("configs/experiments").iterdir()}
    assert names == {"renamed", "baseline_mean", "further"}
    assert lines("configs/experiments/renamed.yaml")[-1] == "a: 1"
    assert lines("configs/default.yaml") == ["a: 7"]
    assert "configs/default.yaml" in capsys.readouterr().out


def test_conflicts_are_shown_as_git_shows_them_and_can_be_undone(clone, template, capsys):
    start("my_study")
    commit(clone, **{CODE: "\n".join([*LINES[:-1], "mine"])})
    change_template(template)
    assert main(["update"]) == 1
    assert CODE in capsys.readouterr().out
    text = Path(CODE).read_text()
    assert "<<<<<<<" in text
    assert "mine" in text
    assert "new" in text
    git(clone, "reset", "--hard")
    assert lines(CODE)[-1] == "mine"
    assert git(clone, "status", "--porcelain") == ""


def test_a_clone_with_a_history_of_its_own_is_found_by_its_content(clone, template):
    shutil.rmtree(".git")  # as GitHub's "Use this template"
    git(clone, "init", "--quiet")
    commit(clone)
    start("my_study")
    change_template(template)
    with pytest.raises(UserError, match="address"):
        update()
    assert update(str(template))
    assert lines(CODE)[-1] == "new"


def test_another_repository_is_refused(clone, tmp_path):
    start("my_study")
    git(tmp_path, "init", "--quiet", "other")
    commit(tmp_path / "other", a="b")
    with pytest.raises(UserError, match="has no commit"):
        update(str(tmp_path / "other"))
    assert git(clone, "status", "--porcelain") == ""
