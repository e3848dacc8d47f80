"""Tables: CSV, TSV, Parquet and tensorflow-datasets to rows with the number of their line."""

import contextlib
import io
import logging
import reprlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple, cast

from mlstm_jax.corpus import dialects
from mlstm_jax.corpus.columns import Keys, distinct, find_keys, has_usual_name, listed
from mlstm_jax.corpus.dialects import recognise
from mlstm_jax.corpus.lines import HEAD, kept, optional
from mlstm_jax.corpus.records import as_cell, values
from mlstm_jax.errors import UserError

logger = logging.getLogger(__name__)


NO_CELLS: Mapping[str, Any] = {}  # of all rows that are not kept whole


class Row(NamedTuple):
    """Line, text, label and what is wrong; of a wrong row its data for the text."""

    line: int
    text: str
    label: str | None
    wrong: str | None
    cells: Mapping[str, Any] = NO_CELLS
    """All cells by their columns' names, where they were asked for and the row can be read."""


class Table(NamedTuple):
    """The keys by which rows are read, the names of all columns, no two equal, and the rows."""

    keys: Keys
    names: list[str]
    rows: Iterator[Row]


def separated(
    blocks: Iterable[bytes],
    delimiter: str,
    keys: Keys,
    name: str,
    whole: bool = False,
    log: Callable[[str], None] = logger.warning,
) -> Table:
    """CSV or TSV below a header, in the dialect of its first block; blocks are whole lines. `whole` keeps all cells.

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
    keys, names = find_keys(header, keys, where, "column", advice), distinct(header)
    if whole:
        report_renamed(header, names, where, log)

    def below() -> Iterator[Row]:
        text, label = header.index(keys.text or ""), header.index(keys.label) if keys.label else None
        for number, row, data, wrong in rows:
            if wrong is None and len(row) != len(header):
                wrong = f"{len(row)} columns, the header has {len(header)}"
            if wrong:
                yield Row(number, kept(data), None, wrong)
            else:
                cells = dict(zip(names, row, strict=True)) if whole else NO_CELLS
                yield Row(number, row[text], None if label is None else row[label] or None, None, cells)

    return Table(keys, names, below())


def report_renamed(header: list[str], names: list[str], where: str, log: Callable[[str], None]) -> None:
    """Say which columns have another name than in the header."""
    renamed = [f"{old!r} is {new!r}" for old, new in zip(header, names, strict=True) if old != new]
    if renamed:
        log(f"{where}: columns of the same name are renamed: {listed(renamed)}")


def parquet(name: str, keys: Keys, whole: bool = False) -> tuple[Table, int]:
    """A Parquet file and its number of rows; the data of a wrong row is its value, shortened. `whole` keeps all cells.

    Raises UserError for a file that cannot be read or lacks the keys.
    """
    pyarrow = optional("pyarrow", name)
    optional("pyarrow.parquet", name)

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last: dates beyond Python's
            raise UserError(f"{name}: not a whole Parquet file ({one_line(error)})") from None

    with explained():
        file = pyarrow.parquet.ParquetFile(name)
    header = file.schema_arrow.names
    keys, names = find_keys(header, keys, name, "column"), distinct(header)

    def rows() -> Iterator[Row]:
        number = 0
        with explained(), file:
            for batch in file.iter_batches(
                128 if whole else 1024, columns=None if whole else [key for key in keys if key]
            ):
                columns = [_objects(pyarrow, batch.column(key)) if key else [None] * len(batch) for key in keys]
                every = [_cells(pyarrow, column) for column in batch.columns] if whole else []
                rows = zip(*every, strict=True) if whole else [()] * len(batch)
                for text, label, row in zip(*columns, rows, strict=True):
                    number += 1
                    cells = dict(zip(names, row, strict=True)) if whole else NO_CELLS
                    yield _row(number, text, label, keys)._replace(cells=cells)

    return Table(keys, names, rows()), file.metadata.num_rows


def _row(number: int, value: Any, label: Any, keys: Keys) -> Row:
    text, label, wrong = values(value, label, keys)
    return Row(number, reprlib.repr(value) if text is None else text, label, wrong)


def _cells(pyarrow: ModuleType, column: Any) -> list[Any]:
    """A column's values as cells keep them; times in full, which Python's are not."""
    is_time = any(getattr(pyarrow.types, f"is_{kind}")(column.type) for kind in ("timestamp", "date", "time"))
    return list(map(as_cell, _objects(pyarrow, column.cast(pyarrow.string()) if is_time else column)))


def _objects(pyarrow: ModuleType, column: Any) -> list[Any]:
    """A column's values; text as bytes, since it need not be UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = str(column.type) in ("string", "large_string", "string_view")
    return (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()


INSTEAD = "Amazon Reviews 2023 as .jsonl files works, and so does tfds:imdb_reviews"


def dataset(source: str, keys: Keys, whole: bool = False) -> Table:
    """The set tfds:NAME[/CONFIG][:SPLIT], which is fetched where it is not there yet. `whole` keeps all cells.

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
    keys, names = find_keys(list(features), keys, source, "feature"), list(features)

    def rows() -> Iterator[Row]:
        for start in range(0, len(records), 1000):
            with _told_by_tfds(source):
                some = records.__getitems__(range(start, min(start + 1000, len(records))))
                read: list[list[Any]] = [[record[key] if key else None for key in keys] for record in some]
                cells = [{name: as_cell(record[name]) for name in names} if whole else NO_CELLS for record in some]
            for number, ((text, label), all_of_it) in enumerate(zip(read, cells, strict=True), start + 1):
                row = _row(number, text, label.item() if hasattr(label, "item") else label, keys)
                yield row._replace(cells=all_of_it)

    return Table(keys, names, rows())


@contextlib.contextmanager
def _told_by_tfds(name: str) -> Iterator[None]:
    """Whatever tensorflow-datasets raises, in one line: there is no end to the kinds of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"tensorflow-datasets cannot read it without TensorFlow ({one_line(error)})"
        raise UserError(f"{name}: {why}; {INSTEAD}") from None


def one_line(error: Exception) -> str:
    return textwrap.shorten((str(error) or type(error).__name__).strip().partition("\n")[0], 300, placeholder=" ...")
