"""A project of one's own from the template, and newer versions of the template merged into it, by git.

`start` gives a clone its own name, README, citation and license; `.template.json` records the template's commit.
`update` merges what the template changed since then: a cherry-pick of one commit whose parent is the template's old
state. So git finds renamed files and shows conflicts as always, also where the project has a history of its own.
"""

import datetime
import json
import re
import shutil
import tempfile
from pathlib import Path

from project.errors import UserError, bullet_list
from project.files import write_json
from project.provenance import run_git

RECORD = Path(".template.json")
# Tests of the template take its experiments from here, so that a project may change and delete its own.
TEST_CONFIGS = "tests/template/configs"
TEMPLATE_README = "TEMPLATE.md"
OWNED = ("README.md", "CITATION.cff", "LICENSE")  # written by `start`; an update never touches them
KEPT = ("unet_mse.yaml", "baseline_*.yaml")  # experiments that a project without the demo starts with

README = """# {title}

What is the question, on which images, and which number answers it?

## Next steps

- [ ] `make data RAW=folder/of/images NAME=NAME` writes `configs/data/NAME.yaml`, and prepares the data: read both.
- [ ] `make inspect DATASET=NAME`: sizes, ranges, drift, outliers.
- [ ] `make train DATASET=NAME`: plans an experiment, trains it, and compares it with the baselines.
- [ ] Change the experiment in `configs/experiments/`, one decision at a time; `make eval` prints the table.
- [ ] When everything is chosen on the validation split: `make eval EXP=... SPLIT=test`, once.

## Results

| experiment | what it shows | metric |
|---|---|---|

[{readme}]({readme}) describes the commands, [project/README.md](project/README.md) the code. `make update` merges newer
versions of the template.
"""

CITATION = """cff-version: 1.2.0
message: If you use this software, please cite it.
title: {title}
type: software
license: MIT
authors:
  - name: {author}
version: 0.1.0
date-released: {date}
"""


def start(name: str, author: str | None = None, demo: bool = True, fresh_history: bool = False) -> None:
    """Make a clone of the template a project of one's own, in one commit.

    Args:
        name: Of the project, such as my_study; the Python package stays `project`.
        author: For LICENSE and CITATION.cff; by default git's user.name.
        demo: Keep all experiments; False keeps those of `KEPT` and the simulated yeast that `make train` starts with.
        fresh_history: The commit has no parent; the template's history can no longer be seen.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*", name):
        raise UserError(f"name {name!r}: letters and digits, with single _ or - between, such as my_study")
    if RECORD.exists():
        raise UserError(f"this project was started already: {RECORD} records the template's commit")
    _require_clean()
    author = author or run_git("config", "user.name", default="") or "The authors"
    commit, tree = run_git("rev-parse", "HEAD", "HEAD^{tree}").split("\n")
    # The tree finds the commit again where the clone has a history of its own, as by GitHub's "Use this template".
    url = run_git("remote", "get-url", "origin", default="") or None
    write_json(RECORD, {"url": url, "commit": commit, "tree": tree})
    configs = [
        Path(name) for name in run_git("ls-files", "configs").splitlines()
    ]  # not what is new: it is no template's
    for path in configs:
        copy = Path(TEST_CONFIGS, path.relative_to("configs"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    run_git("mv", "README.md", TEMPLATE_README)
    title, today = re.sub("[_-]", " ", name).capitalize(), datetime.datetime.now(tz=datetime.UTC).date()
    Path("README.md").write_text(README.format(title=title, readme=TEMPLATE_README), encoding="utf-8")
    citation = CITATION.format(title=json.dumps(title), author=json.dumps(author), date=today)
    Path("CITATION.cff").write_text(citation, encoding="utf-8")
    _replace("LICENSE", r"Copyright \(c\) .*", f"Copyright (c) {today.year} {author}")
    _replace("pyproject.toml", r'(?m)^name = ".*"', f'name = "{name.replace("_", "-").lower()}"')
    _replace("pyproject.toml", r'(?m)^description = ".*"', f"description = {json.dumps(title)}")
    if not demo:
        shipped = [p for p in configs if p.parent.name == "experiments" and not any(p.match(kept) for kept in KEPT)]
        for path in (*shipped, Path("configs/data/ihc.yaml"), Path("configs/tune/unet_mse.yaml")):
            path.unlink(missing_ok=True)
    run_git("add", "--update")
    run_git("add", str(RECORD), "README.md", TEST_CONFIGS)  # nothing else that is new, such as a folder of images
    message = f"Start {name} from the template at {commit[:9]}"
    if fresh_history:
        run_git("update-ref", "-m", "start", "HEAD", run_git("commit-tree", run_git("write-tree"), "-m", message))
    else:
        run_git("commit", "--quiet", "--no-verify", "-m", message)
    print(f"{name} is committed. Next: `git remote set-url origin ADDRESS` of your own repository; then see README.md.")


def update(url: str | None = None, revision: str = "HEAD") -> bool:
    """Merge what the template changed since the project was made from it, or since the last update.

    Files of `configs/` that the project changed or deleted stay as they are, as do those of `OWNED`. Everything else is
    merged line by line.

    Args:
        url: Of the template's repository; by default the recorded one.
        revision: Branch, tag or commit of the template.

    Returns:
        Whether all was merged and committed; False where conflicts are left in the files.
    """
    if not RECORD.is_file():
        raise UserError(f"{RECORD} is missing: this is a plain clone, which `git pull` updates")
    _require_clean()
    record = json.loads(RECORD.read_text())
    if not (url := url or record["url"]):
        raise UserError("the template's address is not recorded: make update URL=...")
    run_git("fetch", "--quiet", "--no-tags", url, revision)
    trees = dict(line.split() for line in run_git("log", "--format=%H %T", "FETCH_HEAD").splitlines())  # newest first
    new = next(iter(trees))
    old = next((c for c, tree in trees.items() if c == record["commit"] or tree == record["tree"]), None)
    if old is None:
        raise UserError(f"{url} has no commit {record['commit'][:9]}, which this project was made from")
    if new == old:
        print("The template has not changed.")
        return True
    before, after, mine = _template_files(old), _template_files(new), _files("HEAD")
    own = [path for path in {*before, *after} if path.startswith("configs/") and mine.get(path) != before.get(path)]
    if unmerged := sorted(path for path in own if after.get(path) not in (before.get(path), mine.get(path))):
        print(f"Your own, so not updated; compare with `git show {new[:9]}:FILE`:\n{bullet_list(unmerged)}")
    after = {path: blob for path, blob in after.items() if path not in own}
    after |= {path: before[path] for path in own if path in before}
    parent = run_git("commit-tree", _tree(before), "-m", f"Template at {old[:9]}")
    message = f"Update the template to {new[:9]}"
    change = run_git("commit-tree", _tree(after), "-p", parent, "-m", message)
    failed = run_git("cherry-pick", "--no-commit", "--allow-empty", change, default="failed") == "failed"
    write_json(RECORD, {"url": url, "commit": new, "tree": trees[new]})
    run_git("add", str(RECORD))
    if failed:
        print(f"Conflicts:\n{bullet_list(run_git('diff', '--name-only', '--diff-filter=U').splitlines())}")
        print("Resolve them, `git add` them, `git commit`, `make setup test`. To undo: `git reset --hard`.")
        return False
    run_git("commit", "--quiet", "--no-verify", "-m", message)
    print(f"Updated to the template's {new[:9]}. Next: `make setup test`.")
    return True


def _template_files(commit: str) -> dict[str, str]:
    """Files of the template as `start` arranges them in a project, without those that the project owns."""
    files = _files(commit)
    files[TEMPLATE_README] = files.get("README.md", "")
    files |= {f"tests/template/{path}": blob for path, blob in files.items() if path.startswith("configs/")}
    return {path: blob for path, blob in files.items() if path not in OWNED and blob}


def _files(commit: str) -> dict[str, str]:
    """Path -> mode and hash of each file of a commit."""
    entries = (line.split("\t", 1) for line in run_git("ls-tree", "-r", "-z", commit).split("\0") if line)
    return {path: " ".join(head.split(" ")[::2]) for head, path in entries}


def _tree(files: dict[str, str]) -> str:
    """Hash of a git tree of these files."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        lines = "".join(f"{head}\t{path}\0" for path, head in files.items())
        run_git("update-index", "-z", "--index-info", text=lines, variables=index)
        return run_git("write-tree", variables=index)


def _require_clean() -> None:
    if run_git("rev-parse", "--show-toplevel", default="") != str(Path.cwd().resolve()):
        raise UserError("run this in the top folder of a git clone")
    if not run_git("var", "GIT_AUTHOR_IDENT", default=""):
        raise UserError('git does not know who you are: git config --global user.name "..."; user.email likewise')
    if changes := run_git("status", "--porcelain", "--untracked-files=no"):
        raise UserError(f"commit your changes first, so that nothing is lost:\n{changes}")


def _replace(path: str, pattern: str, text: str) -> None:
    """Replace the first match in a file."""
    content = Path(path).read_text(encoding="utf-8")
    Path(path).write_text(re.sub(pattern, lambda _: text, content, count=1), encoding="utf-8")
