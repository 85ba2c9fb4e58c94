"""The whole story on a real model: export, ask, teach two facts by forward passes alone, ask again, undo, ask again.

Then ten personal facts at once, of which one is forgotten.

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
from tqdm import tqdm

from mobiedit.runtime import Bundle, EditRequest, EditResult, open_bundle
from mobiedit.runtime.cli_support import exit_codes
from mobiedit.runtime.edit_store import EditStore

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
PERSONAL = (
    EditRequest("{} lives in the city of", "My sister Nadia", "Lisbon"),
    EditRequest("{} earns his living as a", "My cousin Rafael", "baker"),
    EditRequest("{} is called", "My boss", "Ingrid"),
    EditRequest("{} answers to the name of", "My dog", "Biscuit"),
    EditRequest("My {} was born in the city of", "brother Emil", "Ghent"),
    EditRequest("{} celebrates his birthday in the month of", "My father", "October"),
    EditRequest("On weekdays my {} works at the", "husband Tobias", "airport"),
    EditRequest("The name of my {} is", "hairdresser", "Marco"),
    EditRequest("In the morning my {} drinks", "flatmate Ayumi", "coffee"),
    EditRequest("The colour of my {} is", "bicycle", "yellow"),
)
FORGOTTEN = 2  # the boss
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
    """Teach, ask, undo and forget in a bundle without edits, and print what came of it."""
    before = two_facts(bundle)
    ten_facts(bundle, before)


def two_facts(bundle: Bundle) -> dict[str, str]:
    """Teach two facts and take them back; return the answers before, of what is unrelated as well."""
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

    table(("question", "before", "edited", "undone"), (*asked, *UNRELATED), (before, after, {**before, **undone}))
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
    return before


def ten_facts(bundle: Bundle, before: dict[str, str]) -> None:
    """Teach ten personal facts at once, ask for them, and forget one."""
    asked = tuple(request.text for request in PERSONAL)
    title("What the model says of its user's life")
    unknown = answers(bundle, asked)
    title("Teaching ten facts at once")
    with tqdm(total=len(PERSONAL), unit="fact") as bar:
        taught = bundle.edit_batch(PERSONAL, report=lambda progress: bar.update(progress.done - bar.n))
    for request, edit in zip(PERSONAL, taught.edits, strict=True):
        click.echo(f"  {request.text} {request.target}: {'; '.join(edit.failures) or 'taught'}")
    title("The same questions, now with the edits")
    known = answers(bundle, asked)
    title(f"Forgetting one: {asked[FORGOTTEN]} ...")
    if name := taught.edits[FORGOTTEN].edit_id:
        EditStore(bundle.path, bundle.manifest).forget(name)
    left = answers(bundle, (*asked, *UNRELATED))

    table(("question", "before", "taught", "one forgotten"), asked, (unknown, known, left))
    right = [known[request.text].strip().startswith(request.target) for request in PERSONAL]
    others = [place for place, is_right in enumerate(right) if is_right and place != FORGOTTEN]
    kept = sum(left[asked[place]].strip().startswith(PERSONAL[place].target) for place in others)
    unrelated = sum(before[prompt].split()[:1] == left[prompt].split()[:1] for prompt in UNRELATED)
    forgotten = left[asked[FORGOTTEN]] == unknown[asked[FORGOTTEN]]
    click.echo(
        f"\n{taught.committed} of {len(PERSONAL)} taught, {sum(right)} answered; one forgotten, {kept} of the other "
        f"{len(others)} still known, {unrelated} of {len(UNRELATED)} unrelated kept; {taught.cost.forwards} forwards, "
        f"{taught.cost.wall_s:.0f} s"
    )
    if sum(right) < len(PERSONAL) - 1 or kept < len(others) or not forgotten:
        sys.exit("the demo did not do what it says")


def table(columns: tuple[str, ...], prompts: tuple[str, ...], given: tuple[dict[str, str], ...]) -> None:
    """Print the answers side by side."""
    first, *others = columns
    title(f"{first:<55}" + "".join(f"{name:<15}" for name in others))
    for prompt in prompts:
        click.echo(f"{prompt:<55}" + "".join(f"{each[prompt].strip()[:13]:<15}" for each in given))


@click.command()
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
def main(bundle: Path) -> None:
    """Run the demo on BUNDLE, exporting it first when it is not there."""
    if not bundle.exists():
        title(f"Exporting {MODEL} as w8a16")
        # In a process of its own: the peak memory shown at the end shall be the device's, without torch.
        # The layer that `auto` takes for this model, and a quarter of the lens's facts: enough for two edits.
        options = ["--layer", "10", "--lens-rows", "1500"]
        command = [sys.executable, "-m", "mobiedit.export.cli", MODEL, "--out", str(bundle), *options]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)  # the export has said why
    with exit_codes(), tempfile.TemporaryDirectory() as folder:
        run(open_bundle(shutil.copytree(bundle, Path(folder) / "bundle")))


if __name__ == "__main__":
    main()
