"""Tables: CSV, TSV, Parquet and tensorflow-datasets to rows with the number of their line."""

import contextlib
import csv
import io
import reprlib
import sys
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from mlstm_jax.config import UserError, require
from mlstm_jax.corpus.lines import LINE, TOO_LONG, kept, optional
from mlstm_jax.corpus.records import Keys, find_keys, values
from mlstm_jax.text import decode

Row = tuple[int, str, str | None, str | None]  # line, text, label, what is wrong; of a wrong row its data for the text

ROW_LINES = 10_000  # that one row may span: a quote that is never closed does not swallow the rest


def separated(blocks: Iterable[bytes], delimiter: str, keys: Keys, name: str) -> tuple[Keys, Iterator[Row]]:
    """The keys and the rows of CSV or TSV, below a header; `blocks` are whole lines.

    Raises UserError for a header without the keys.
    """
    lines = (line for block in blocks for line in io.BytesIO(block))
    first = next(lines, b"")
    dialect = {"delimiter": delimiter}
    if first.startswith(b"marketplace\tcustomer_id\t"):  # Amazon's own files quote nothing
        dialect["quoting"] = csv.QUOTE_NONE
    rows = _csv_rows(chain([first], lines), dialect)
    number, header, _, wrong = next(rows, (1, [], b"", None))
    where = f"{name}, line {number}"
    require(wrong is None, f"{where}: {wrong}")
    keys = find_keys(header, keys, where, "column")

    def below():
        text, label = header.index(keys.text), header.index(keys.label) if keys.label else None
        for number, row, data, wrong in rows:
            if wrong is None and len(row) != len(header):
                wrong = f"{len(row)} columns, the header has {len(header)}"
            if wrong:
                yield number, kept(data), None, wrong
            else:
                yield number, row[text], None if label is None else row[label] or None, None

    return keys, below()


def _csv_rows(lines, dialect):
    """First line, fields, data and what is wrong of every row. Of a wrong row only its first line is given up.

    The lines behind that one are read again: where many of them fail, in shorter rows, so that time stays linear.
    """
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes
    row_lines, again, number, failures = [], deque(), 1, 0

    def feed():
        size = 0
        while (line := again.popleft() if again else next(lines, None)) is not None:
            row_lines.append(line)
            size = len(line) - line.endswith(b"\n") + (size if len(row_lines) > 1 else 0)
            if len(row_lines) > max(1, ROW_LINES >> failures) or size > LINE:
                raise csv.Error("a quote is not closed" if len(row_lines) > 1 else TOO_LONG)
            yield decode(line)

    reader = csv.reader(feed(), strict=True, **dialect)
    while True:
        row_lines.clear()
        try:
            row, wrong = next(reader, []), None
        except csv.Error as error:
            row, wrong = [], str(error)
            failures += len(row_lines) > 1
            again.extendleft(reversed(row_lines[1:]))
            del row_lines[1:]
            reader = csv.reader(feed(), strict=True, **dialect)
        if not row_lines:
            return
        if row or wrong:
            yield number, row, b"".join(row_lines).removesuffix(b"\n"), wrong
        number += len(row_lines)
        failures = failures if again else 0


def parquet(name: str, keys: Keys) -> tuple[Keys, Iterator[Row], int]:
    """The keys, the rows and the number of rows of a Parquet file; the data of a wrong row is its value, shortened.

    Raises UserError for a file that cannot be read or lacks the keys.
    """
    pyarrow = optional("pyarrow", name)
    optional("pyarrow.parquet", name)

    @contextlib.contextmanager
    def told():
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last: dates beyond Python's
            raise UserError(f"{name}: not a whole Parquet file ({_one_line(error)})") from None

    with told():
        file = pyarrow.parquet.ParquetFile(name)
    keys = find_keys(file.schema_arrow.names, keys, name, "column")

    def rows():
        number = 0
        with told(), file:
            for batch in file.iter_batches(1024, columns=[key for key in keys if key]):
                columns = [_objects(pyarrow, batch.column(key)) if key else [None] * len(batch) for key in keys]
                for text, label in zip(*columns, strict=True):
                    number += 1
                    yield _row(number, text, label, keys)

    return keys, rows(), file.metadata.num_rows


def _row(number, value, label, keys) -> Row:
    text, label, wrong = values(value, label, keys)
    return number, reprlib.repr(value) if text is None else text, label, wrong


def _objects(pyarrow, column):
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
            require(not refused, f"{source}: its owner has withdrawn it since 2023; {INSTEAD}")
            print(f"fetching {name} into {builder.data_path}", file=sys.stderr)
            config = tfds.download.DownloadConfig(try_download_gcs=False)  # what lies there takes TensorFlow
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=config, file_format="array_record")
        stored = builder.info.file_format.value  # tensorflow-datasets' own Parquet files lack rows
        advice = "set TFDS_DATA_DIR to another folder to have it prepared as array_record"
        require(stored == "array_record", f"{source}: it is stored as {stored}; {advice}")
        records = builder.as_data_source(split or "train")
    keys = find_keys(list(builder.info.features), keys, source, "feature")

    def rows():
        for start in range(0, len(records), 1000):
            with _told_by_tfds(source):
                some = records.__getitems__(range(start, min(start + 1000, len(records))))
                some = [[record[key] if key else None for key in keys] for record in some]
            for number, (text, label) in enumerate(some, start + 1):
                yield _row(number, text, label.item() if hasattr(label, "item") else label, keys)

    return keys, rows()


@contextlib.contextmanager
def _told_by_tfds(name):
    """Whatever tensorflow-datasets raises, in one line: there is no end to the kinds of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"tensorflow-datasets cannot read it without TensorFlow ({_one_line(error)})"
        raise UserError(f"{name}: {why}; {INSTEAD}") from None


def _one_line(error):
    return textwrap.shorten((str(error) or type(error).__name__).strip().partition("\n")[0], 300, placeholder=" ...")
