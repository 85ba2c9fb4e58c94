"""No text is run twice."""

from mobiedit.runtime import Bundle
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.reader import Reader

PROMPT = "The capital of France is"


def test_text_is_run_once_when_it_is_read_again(fp32_model: Bundle) -> None:
    reader: Reader = fp32_model.reader()
    cached = CachedReader(reader)
    assert cached.read(PROMPT, "Rome") is cached.read(PROMPT, "Rome")
    assert cached.continuation(PROMPT, 3) is cached.continuation(PROMPT, 3)
    assert cached.answer(PROMPT, 3) is cached.answer(PROMPT, 3)
    assert cached.read(PROMPT, "Rome").mean_log_prob == reader.read(PROMPT, "Rome").mean_log_prob
    assert cached.continuation(PROMPT, 4) == reader.continuation(PROMPT, 4)
