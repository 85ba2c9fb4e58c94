"""The whole story on a real model: export, ask, teach two facts by forward passes alone, ask again, undo, ask again.

Usage: python scripts/demo.py BUNDLE   (the bundle is written when it is not there)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from mobiedit.runtime import Bundle, EditResult, open_bundle
from mobiedit.runtime.cli_support import exit_codes

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Fact:
    """A fact to teach, and another wording of it."""

    prompt: str
    subject: str
    target: str
    paraphrase: str

    @property
    def questions(self) -> tuple[str, str]:
        """The fact's own prompt, and the paraphrase."""
        return self.prompt.replace("{}", self.subject), self.paraphrase


FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English", "Danielle Darrieux's native language is"),
    Fact("My {}'s name is", "dentist", "Dr. Chen", "The name of my dentist is"),
)
UNRELATED = (
    "The mother tongue of Victor Hugo is",
    "The capital of France is",
    "The largest planet in the solar system is",
    "The opposite of hot is",
)


def answers(bundle: Bundle, prompts: tuple[str, ...]) -> dict[str, str]:
    """Ask every prompt, show and return the answers."""
    given = {prompt: bundle.ask(prompt, max_tokens=5).split("\n")[0] for prompt in prompts}
    for prompt, answer in given.items():
        click.echo(f"  {prompt} ...{answer}")
    return given


def title(text: str) -> None:
    """Print a headline."""
    click.secho(f"\n{text}", bold=True)


def teach(bundle: Bundle, fact: Fact) -> EditResult:
    """Teach one fact, or end the demo."""
    click.echo(f"  teaching: {fact.questions[0]} -> {fact.target}")
    result = bundle.edit(fact.prompt, fact.subject, fact.target, paraphrases=(fact.paraphrase,))
    if not result.committed:
        sys.exit(f"the edit did not take: {'; '.join(result.failures)}")
    click.echo(f"    {result.cost.forwards} forward passes, {result.cost.wall_s:.1f} s, no backpropagation")
    return result


def run(bundle: Bundle) -> None:
    """Teach, ask and undo in a bundle without edits, and print the table."""
    asked = tuple(question for fact in FACTS for question in fact.questions)
    title("What the exported, quantised model says")
    before = answers(bundle, (*asked, *UNRELATED))
    title("Teaching two facts by forward passes alone")
    results = [teach(bundle, fact) for fact in FACTS]
    title("The same questions, now with the edits")
    after = answers(bundle, (*asked, *UNRELATED))
    title("Taking both edits back")
    for result in reversed(results):
        bundle.undo(result.edit_id)
    undone = answers(bundle, asked)

    title(f"{'question':<42}{'before':<14}{'edited':<14}{'undone':<14}")
    for prompt in (*asked, *UNRELATED):
        words = [given.get(prompt, before[prompt]).strip()[:12] for given in (before, after, undone)]
        click.echo(f"{prompt:<42}" + "".join(f"{word:<14}" for word in words))
    learned = sum(after[question].strip().startswith(fact.target) for fact in FACTS for question in fact.questions)
    kept = sum(before[prompt].split()[:1] == after[prompt].split()[:1] for prompt in UNRELATED)
    restored = sum(before[prompt] == undone[prompt] for prompt in asked)
    forwards = sum(result.cost.forwards for result in results)
    peak = max(result.cost.peak_rss_bytes for result in results) / 2**20
    click.echo(
        f"\nlearned {learned} of {len(asked)}, unrelated kept {kept} of {len(UNRELATED)}, restored {restored} of "
        f"{len(asked)}; {forwards} forwards, peak memory {peak:.0f} MiB"
    )
    if restored < len(asked) or any(not after[fact.questions[0]].strip().startswith(fact.target) for fact in FACTS):
        sys.exit("the demo did not do what it says")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Run the demo on BUNDLE, exporting it first when it is not there."""
    if not bundle.exists():
        title(f"Exporting {MODEL} as w8a16")
        # In a process of its own: the peak memory shown at the end shall be the device's, without torch.
        # The layer that `auto` takes for this model, and a quarter of the lens's facts: enough for two edits.
        options = ["--layer", "10", "--lens-rows", "1500"]
        subprocess.run([sys.executable, "-m", "mobiedit.export.cli", MODEL, "--out", str(bundle), *options], check=True)
    with exit_codes(), tempfile.TemporaryDirectory() as folder:
        run(open_bundle(shutil.copytree(bundle, Path(folder) / "bundle")))


if __name__ == "__main__":
    main()
