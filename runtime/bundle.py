"""A bundle on disk: open it, ask it, teach it, undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .batch_editor import BatchEditor
from .batch_result import BatchProgress, BatchResult
from .bundle_check import usable_manifest
from .bundle_info import describe
from .bundle_layout import EDITS, KEY_STATISTICS, LENS, TOKENIZER
from .bundle_parts import load_decoder
from .configuration import EditConfig, ExecutionConfig, Optimizer, Staging
from .decoder import Decoder
from .edit_records import record_of
from .edit_result import EditResult, SolvedEdit
from .edit_set import EditSet, EditSetConfig
from .editor import Workbench, solve_edit
from .edits_in_force import EditsInForce
from .errors import JournalError
from .gauss_newton import gauss_newton
from .journal import Journal
from .journal_records import EditRecord, new_edit_id
from .key_statistics import KeyStatistics
from .lens import Lens
from .lock import editing_lock
from .manifest import Manifest
from .memory_plan import predicted_peaks
from .perturbation import for_precision
from .prompt_rows import EditRequest
from .reader import Reader
from .search import Progress, Search
from .staged_edit import staged_decoder, stages_edits
from .tokenizer import Tokenizer
from .zeroth_order import zeroth_order


def open_bundle(
    path: str | Path,
    execution: ExecutionConfig | None = None,
    *,
    verify: bool = True,
    edits: EditSetConfig | None = None,
) -> Bundle:
    """Open a bundle for asking and editing.

    Parameters
    ----------
    path
        The bundle's folder.
    execution
        How graphs are run.
    verify
        Compare every file's hash with the manifest; otherwise only names and sizes.
    edits
        How edits are solved together.

    Raises
    ------
    BundleError
        When the bundle is missing, damaged, unsafe, or of a newer schema.
    RequestError
        When it is not of the precision, or not for the SoC, that ``execution`` needs.
    """
    folder, execution = Path(path), execution or ExecutionConfig()
    return Bundle(folder, usable_manifest(folder, execution, hashes=verify), execution, edits)


class Bundle:
    """An open bundle. Sessions are made when first needed; a change of the journal is seen by the next operation.

    Attributes
    ----------
    path
        Its folder.
    manifest
        What it states about itself.
    execution
        How its graphs are run.
    """

    def __init__(
        self, path: Path, manifest: Manifest, execution: ExecutionConfig, edits: EditSetConfig | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.execution = execution
        self._journal = Journal(path / EDITS, manifest.edit_base)
        self._in_force = EditsInForce(self._journal, manifest, edits)

    def edit(
        self,
        prompt: str,
        subject: str,
        target: str,
        *,
        paraphrases: tuple[str, ...] = (),
        keep: tuple[str, ...] = (),
        config: EditConfig | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> EditResult:
        """Teach a fact; commit it only if its check passes, or if ``config.force`` is set.

        An edit of the same fact is replaced: it is covered until the new one is undone.

        Parameters
        ----------
        prompt, subject, target, paraphrases, keep
            As in `EditRequest`.
        report
            Called while the search runs.

        Raises
        ------
        RequestError
            When the request is not well formed, or the slots cannot hold one more edit.
        BusyError
            When another process edits this bundle.
        StorageError
            When the journal cannot be written; nothing is committed.
        NumericsError
            When a graph returned NaN or infinity; nothing is committed.
        """
        request = EditRequest(prompt, subject, target, paraphrases, keep)
        config = config or EditConfig()
        with editing_lock(self.path / EDITS):
            with self._editing_decoder(config) as decoder:
                solved, _ = self._solve(self._workbench(decoder, config), request, report)
            commit = config.force or not solved.failures
            result = solved.result(new_edit_id() if commit else None, config.optimizer)
            if commit:
                self._journal.append_edits([record_of(request, solved, result, self.manifest)])
        return result

    def edit_batch(
        self,
        requests: Sequence[EditRequest],
        config: EditConfig | None = None,
        report: Callable[[BatchProgress], None] = lambda progress: None,
    ) -> BatchResult:
        """Teach facts at once; those that fail the check are left out, unless ``config.force`` is set.

        All that hold are committed in one append. See `BatchEditor`; parameters and errors as of `edit`.
        """
        config = config or EditConfig()
        with editing_lock(self.path / EDITS):
            with self._editing_decoder(config) as decoder, self._numpy_threads():
                bench, base = self._workbench(decoder, config), self._in_force
                editor = BatchEditor(bench, base.without, base.teaching)
                solved = editor.solve(requests, new_edit_id(), report)
            result = solved.result(config.optimizer)
            if result.committed:
                self._journal.append_edits(solved.records(result, self.manifest))
        return result

    def trial(
        self,
        request: EditRequest,
        config: EditConfig | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        search: Search | None = None,
    ) -> tuple[SolvedEdit, Reader]:
        """Solve an edit on top of the committed ones without committing it; nothing on the disk is touched.

        Parameters
        ----------
        search
            Another way to search for delta than the one that ``config`` names.

        Returns
        -------
        tuple
            The edit, and a reader with it in force, whatever its check says.

        Raises
        ------
        RequestError, NumericsError
            As `edit`.
        """
        bench = self._workbench(self.decoder, config or EditConfig(), search)
        solved, edits = self._solve(bench, request, report)
        return solved, Reader(self.decoder, self.tokenizer, self.manifest, edits.slots)

    def reader(self) -> Reader:
        """Return a reader with the edits in force that are committed now."""
        return Reader(self.decoder, self.tokenizer, self.manifest, self._in_force.solved().slots)

    def ask(self, prompt: str, max_tokens: int = 32) -> str:
        """Return the greedy continuation of ``prompt``, all committed edits in force."""
        return self.reader().ask(prompt, max_tokens)

    def stream(self, prompt: str, max_tokens: int = 32) -> Iterator[str]:
        """Yield the continuation of ``prompt`` piece by piece, as it is generated; it ends where the context does."""
        return self.reader().stream(prompt, max_tokens)

    def log_probabilities(self, text: str) -> NDArray[np.float32]:
        """Return [T, V] log-probabilities of the token behind each token of ``text``, all committed edits in force."""
        return self.reader().log_probabilities(text)

    def score(self, prompt: str, answer: str) -> tuple[float, bool]:
        """Return the mean log-probability of ``answer`` behind ``prompt``, and whether it is greedy; see `Reader`."""
        return self.reader().score(prompt, answer)

    def edits(self) -> tuple[EditRecord, ...]:
        """Return the committed edits that are in force, oldest first; see `JournalState`."""
        return self._journal.read().edits

    def undo(self, edit_id: str | None = None) -> EditRecord:
        """Withdraw an edit, by default the last one in force, and return it; one that it covered is in force again.

        Raises
        ------
        JournalError
            When there is no such edit.
        """
        with editing_lock(self.path / EDITS):
            state = self._journal.read()
            if not state.edits:
                raise JournalError("this bundle has no edits: there is nothing to undo")
            chosen = edit_id or state.edits[-1].edit_id
            self._journal.append_undo(chosen)
            return state.replay.taught[chosen]

    def info(self) -> dict[str, Any]:
        """Return what the bundle is and what runs it, as plain data; see `describe`."""
        return describe(self.path, self.manifest, self._in_force, self.execution, lambda: self.decoder.parts)

    def predicted_peaks(self) -> dict[str, int]:
        """Return the peak resident memory that an edit and an answer will take, in bytes; nothing is opened for it."""
        return predicted_peaks(self.manifest, self.execution)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer(self.path / TOKENIZER)

    @cached_property
    def decoder(self) -> Decoder:
        """The bundle's graphs in sessions, without edits of their own: slots are passed to each run."""
        return load_decoder(self.path, self.manifest, self.execution)

    def _editing_decoder(self, config: EditConfig) -> AbstractContextManager[Decoder]:
        """Return the decoder that an edit runs on: in stages, or the one that is left open."""
        if stages_edits(self.manifest, self.execution, config):
            if self.execution.staging is Staging.ON:
                vars(self).pop("decoder", None)  # its graphs are all in memory
            if "decoder" not in vars(self):
                return staged_decoder(self.path, self.manifest, self.execution)
        return nullcontext(self.decoder)

    def _workbench(self, decoder: Decoder, config: EditConfig, search: Search | None = None) -> Workbench:
        return Workbench(
            decoder,
            self.tokenizer,
            self.manifest.row_prefixes,
            self.manifest.canaries,
            KeyStatistics.find(self.path / KEY_STATISTICS),
            config,
            search or self.search_for(config),
            self._in_force.taught(),
        )

    def _solve(
        self, bench: Workbench, request: EditRequest, report: Callable[[Progress], None]
    ) -> tuple[SolvedEdit, EditSet]:
        """Return an edit on top of the committed ones but that of the same fact, and all of them together."""
        with self._numpy_threads():
            solved, edits = solve_edit(bench, request, self._in_force.without([request.fact]), report)
        return replace(solved, replaces=self._in_force.teaching(request.fact)), edits

    def _numpy_threads(self) -> AbstractContextManager[object]:
        """Hold numpy's linear algebra to the threads of a graph: ONNX Runtime's settings do not reach it."""
        limits: AbstractContextManager[object] = threadpool_limits(self.execution.threads or None, user_api="blas")
        return limits

    def search_for(self, config: EditConfig) -> Search:
        """Return the search of delta that ``config`` names."""
        if config.optimizer is Optimizer.GN:
            chosen = for_precision(config.gauss_newton, self.manifest.precision)
            return partial(gauss_newton, config=chosen, lens=self._lens)
        return partial(zeroth_order, config=config.zeroth_order)

    @cached_property
    def _lens(self) -> Lens:
        return Lens.read(self.path / LENS)
