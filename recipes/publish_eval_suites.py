"""Publish the `evaluate` modules and suites as Spaces of the Hub, where `evaluate.load("<namespace>/<name>")` finds them.

    python recipes/publish_eval_suites.py --namespace <user or organization> --dry_run

Log in first (`hf auth login`). The pages of the modules install `hf-unlearn` from PyPI: publish a release before them.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from hf_unlearn import __version__
from hf_unlearn.evaluate_modules.base import EVAL_SUITES, metric_names, suite_names


CARD = """\
---
title: {title}
tags:
- evaluate
- evaluation-suite
- machine-unlearning
sdk: static
pinned: false
---

# {title}

{what}

```python
from evaluate import EvaluationSuite

results = EvaluationSuite.load("{repo}").run(model, processing_class=processing_class)
```

Needs `pip install hf-unlearn`. The options and results of `run`:

```text
{how}
```
"""


def spaces(namespace: str, folder: Path = EVAL_SUITES) -> dict[str, dict[str, Path | bytes]]:
    """Each Space and all that is uploaded to it. What else lies beside these files stays where it is.

    Raises:
        FileNotFoundError: a module lacks one of its files.
    """
    found: dict[str, dict[str, Path | bytes]] = {}
    for name in metric_names(folder):
        files = [folder / name / file for file in (f"{name}.py", "README.md", "app.py", "requirements.txt")]
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(f"The module {name} has no {', '.join(missing)}. Add what is missing.")
        found[f"{namespace}/{name}"] = {file.name: file for file in files}
    for name in suite_names(folder):
        repo, file = f"{namespace}/{name}", folder / f"{name}.py"
        found[repo] = {file.name: file, "README.md": _card(repo, file).encode()}
    return found


def _card(repo: str, file: Path) -> str:
    module = ast.parse(file.read_text(encoding="utf-8"))
    suite = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Suite")
    run = next(node for node in suite.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    what = f"{ast.get_docstring(module)} {ast.get_docstring(suite).splitlines()[0]}"
    return CARD.format(title=file.stem, what=what, repo=repo, how=inspect.cleandoc(ast.get_docstring(run)))


def publish(namespace: str, private: bool = False, dry_run: bool = False, folder: Path = EVAL_SUITES) -> None:
    """Create the Spaces that are not there, and upload to each in one commit.

    Raises:
        ValueError: `private` is asked for, but a Space of that name is there and public.
    """
    api = HfApi()
    for repo, files in spaces(namespace, folder).items():
        print(f"{repo}: {', '.join(sorted(files))}{' (not uploaded)' if dry_run else ''}")
        if dry_run:
            continue
        sdk = "gradio" if "app.py" in files else "static"
        api.create_repo(repo, repo_type="space", space_sdk=sdk, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type="space").private:
            raise ValueError(
                f"You set --private, but the Space {repo} exists and is public. Either make it private in its settings, or "
                "leave out --private."
            )
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=source) for path, source in files.items()]
        api.create_commit(repo, operations, repo_type="space", commit_message=f"hf_unlearn {__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--namespace", required=True, help="user or organization that the Spaces belong to")
    parser.add_argument("--private", action="store_true", help="make new Spaces private")
    parser.add_argument("--dry_run", action="store_true", help="say what would be uploaded, and do nothing")
    arguments = parser.parse_args()
    publish(arguments.namespace, arguments.private, arguments.dry_run)


if __name__ == "__main__":
    main()
