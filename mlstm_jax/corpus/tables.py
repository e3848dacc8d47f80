"""Tables: CSV, TSV, Parquet and tensorflow-datasets to rows with the number of their line."""

import contextlib
import io
import logging
import reprlib
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain
from types import ModuleType
from typing import Any, cast

from mlstm_jax.corpus import dialects
from mlstm_jax.corpus.columns import Keys, find_keys, has_usual_name, listed
from mlstm_jax.corpus.dialects import recognise
from mlstm_jax.corpus.lines import HEAD, kept, optional
from mlstm_jax.corpus.records import values
from mlstm_jax.errors import UserError

logger = logging.getLogger(__name__)

Row = tuple[int, str, str | None, str | None]  # line, text, label, what is wrong; of a wrong row its data for the text


def separated(blocks: Iterable[bytes], delimiter: str, keys: Keys, name: str) -> tuple[Keys, Iterator[Row]]:
    """The keys and the rows of CSV or TSV below a header, in the dialect of its first block; blocks are whole lines.

    Keys that are numbers are those of columns, from 1, in a file without a header. `delimiter` is the usual one of
    such files. Raises UserError for a header without the keys.
    """
    blocks = iter(blocks)
    head = next(blocks, b"")
    short = head if len(head) < 2 * HEAD else head[: head.rfind(b"\n", 0, HEAD) + 1]  # a long line says little
    dialect = recognise(short or head[:HEAD], delimiter, name)
    rows = dialects.rows(dialects.lines(chain([head], blocks), dialect, name), dialect)
    first = number, header, _, wrong = next(rows, (dialect.start, [], b"", None))
    where = f"{name}, line {number}"
    if wrong is not None:
        raise UserError(f"{where}: {wrong}")
    numbers = [str(i) for i in range(1, len(header) + 1)]
    if {*filter(None, keys)} & {*numbers} and not {*filter(None, keys)} & {*header}:
        known = has_usual_name(header)
        if known:
            raise UserError(f"{where}: this is a header; name a column by its name: {listed(header)}")
        header, rows = numbers, chain([first], rows)
    advice = "; if this line is a review, the file has no header: give `text_key` and `label_key` as numbers of columns"
    keys = find_keys(header, keys, where, "column", advice)

    def below() -> Iterator[Row]:
        text, label = header.index(keys.text or ""), header.index(keys.label) if keys.label else None
        for number, row, data, wrong in rows:
            if wrong is None and len(row) != len(header):
                wrong = f"{len(row)} columns, the header has {len(header)}"
            if wrong:
                yield number, kept(data), None, wrong
            else:
                yield number, row[text], None if label is None else row[label] or None, None

    return keys, below()


def parquet(name: str, keys: Keys) -> tuple[Keys, Iterator[Row], int]:
    """The keys, the rows and the number of rows of a Parquet file; the data of a wrong row is its value, shortened.

    Raises UserError for a file that cannot be read or lacks the keys.
    """
    pyarrow = optional("pyarrow", name)
    optional("pyarrow.parquet", name)

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last: dates beyond Python's
            raise UserError(f"{name}: not a whole Parquet file ({_one_line(error)})") from None

    with explained():
        file = pyarrow.parquet.ParquetFile(name)
    keys = find_keys(file.schema_arrow.names, keys, name, "column")

    def rows() -> Iterator[Row]:
        number = 0
        with explained(), file:
            for batch in file.iter_batches(1024, columns=[key for key in keys if key]):
                columns = [_objects(pyarrow, batch.column(key)) if key else [None] * len(batch) for key in keys]
                for text, label in zip(*columns, strict=True):
                    number += 1
                    yield _row(number, text, label, keys)

    return keys, rows(), file.metadata.num_rows


def _row(number: int, value: Any, label: Any, keys: Keys) -> Row:
    text, label, wrong = values(value, label, keys)
    return number, reprlib.repr(value) if text is None else text, label, wrong


def _objects(pyarrow: ModuleType, column: Any) -> list[Any]:
    """A column's values; text as bytes, since it need not be UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = str(column.type) in ("string", "large_string", "string_view")
    return (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()


INSTEAD = "Amazon Reviews 2023 as .jsonl files works, and so does tfds:imdb_reviews"


def dataset(source: str, keys: Keys) -> tuple[Keys, Iterator[Row]]:
    """The keys and the rows of tfds:NAME[/CONFIG][:SPLIT], which is fetched where it is not there yet.

    Raises UserError for one that cannot be read or lacks the keys.
    """
    name, _, split = source.removeprefix("tfds:").partition(":")
    with _told_by_tfds(source):
        import tensorflow_datasets as tfds

        builder = tfds.builder(name)
        if not builder.info.splits:
            refused = name.partition("/")[0] == "amazon_us_reviews"
            if refused:
                raise UserError(f"{source}: its owner has withdrawn it since 2023; {INSTEAD}")
            logger.info(f"fetching {name} into {builder.data_path}")
            config = tfds.download.DownloadConfig(try_download_gcs=False)  # what lies there takes TensorFlow
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=config, file_format="array_record")
        stored = getattr(builder.info.file_format, "value", None)  # tensorflow-datasets' own Parquet files lack rows
        advice = "set TFDS_DATA_DIR to another folder to have it prepared as array_record"
        if stored != "array_record":
            raise UserError(f"{source}: it is stored as {stored}; {advice}")
        features = builder.info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise UserError(f"{source}: its features have no names")
        records = cast(Any, builder).as_data_source(split or "train")  # its decorator hides its parameters
    keys = find_keys(list(features), keys, source, "feature")

    def rows() -> Iterator[Row]:
        for start in range(0, len(records), 1000):
            with _told_by_tfds(source):
                some = records.__getitems__(range(start, min(start + 1000, len(records))))
                cells: list[list[Any]] = [[record[key] if key else None for key in keys] for record in some]
            for number, (text, label) in enumerate(cells, start + 1):
                yield _row(number, text, label.item() if hasattr(label, "item") else label, keys)

    return keys, rows()


@contextlib.contextmanager
def _told_by_tfds(name: str) -> Iterator[None]:
    """Whatever tensorflow-datasets raises, in one line: there is no end to the kinds of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"tensorflow-datasets cannot read it without TensorFlow ({_one_line(error)})"
        raise UserError(f"{name}: {why}; {INSTEAD}") from None


def _one_line(error: Exception) -> str:
    return textwrap.shorten((str(error) or type(error).__name__).strip().partition("\n")[0], 300, placeholder=" ...")
