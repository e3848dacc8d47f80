"""LanguageModel: what a user holds in Python."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Shaped

from mlstm_jax import storage, unit_record
from mlstm_jax.config import Precision
from mlstm_jax.disk import cache_dir
from mlstm_jax.errors import UserError
from mlstm_jax.hardware import default_precision
from mlstm_jax.inference import encode, generate
from mlstm_jax.inference.encode import Feature
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model import parameters
from mlstm_jax.model.cell import Held, State, Weights, zero_state
from mlstm_jax.model.parameters import Params
from mlstm_jax.progress import progress
from mlstm_jax.report import heatmap
from mlstm_jax.report.heatmap import HeatMap
from mlstm_jax.run import Run, newest_run
from mlstm_jax.text import EMPTY, frame, show, to_bytes, to_text
from mlstm_jax.training import checkpoint
from mlstm_jax.unit_record import UnitRecord
from mlstm_jax.weights import formats

logger = logging.getLogger(__name__)

Clamp = Mapping[int, float]  # unit -> value of its cell state
PRETRAINED = Path(__file__).parents[1] / "pretrained"  # the model that comes with the package
UNREAD = (".lock", "checkpoints", "damaged", "features", "profile", "tensorboard", "eval")  # of a run
SHOWN = 5  # of what is no text, how many are named


class Predictions(NamedTuple):
    """Of every text the unit's value, the probability that the text is positive, and "positive" or "negative"."""

    value: Float[np.ndarray, "texts"]
    probability: Float[np.ndarray, "texts"]
    label: Shaped[np.ndarray, "texts"]


def load(
    path: str | Path | None = None,
    update: int | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> "LanguageModel":
    """Open a run folder or another program's weights (format detected); None opens the run with the newest checkpoint.

    "pretrained" is the model that comes with the package; so is None where there is no run in runs/. Of a run, the
    checkpoint of `update`, or the newest one. Matrix products are of `precision`, whatever the weights were trained in;
    "auto" is the device's. Raises UserError where there is nothing to open.
    """
    chosen = None if precision == "auto" else precision
    path = resolved(path)
    run, is_read = Run(path), lambda name: name.split("/")[0] not in UNREAD
    if storage.is_remote(path) and not storage.fetch(path, is_read):
        raise UserError(f"{storage.name(path)} holds nothing")
    if not run.exists():
        if update is not None:
            raise UserError(f"{path} is not a run: it holds no checkpoint {update}")
        about = formats.about(path)._asdict()
        written = about.pop("digest")
        model = LanguageModel(formats.read(path), path, precision=chosen, **about)
        file = path / "model.safetensors" if path.is_dir() else path
        changed = f"{file} does not fit the SHA-256 in the config.json beside it: it has changed since it was written"
        otherwise = "get it again, or, if it was changed on purpose, remove digest and checksum from that config.json"
        if written not in (None, model.digest):
            raise UserError(f"{changed}; {otherwise}")
        return model
    params, meta = checkpoint.load_params(run, logger.warning, update)
    config, update = meta.config, meta.update
    data = f"{Path(config.data).name}, {update * config.batch_size * config.seq_length:,} bytes"
    data += f", starting from {config.init}" if config.init else ""
    bits = meta.validation_bits_per_byte
    about = {"update": update, "validation_bits_per_byte": bits, "trained_on": data}
    return LanguageModel(params, path, is_run=True, precision=chosen, **about)


def resolved(path: str | Path | None) -> Path:
    """The path that `load` opens. Raises UserError where None finds nothing."""
    path = _newest() if path is None else storage.local(path)
    named = path == Path("pretrained") and not path.exists()
    return PRETRAINED if named or path.resolve() == PRETRAINED.resolve() else path


def name_of(path: Path) -> str:
    """What `load` opens a resolved path by: "pretrained", or the path."""
    return "pretrained" if path == PRETRAINED else storage.name(path)


def _newest() -> Path:
    """The run with the newest checkpoint; where there is none, the model that comes with the package."""
    try:
        path = newest_run().path
    except UserError:
        if not PRETRAINED.exists():
            raise
        logger.info("no run in runs/: using the model that comes with the package (pretrained)")
        return PRETRAINED
    logger.info(f"using {path}, the run with the newest checkpoint")
    return path


def _rounded(params: Params) -> Params:
    """Parameters as bfloat16 holds them, in float32."""
    return {name: array.astype(jnp.bfloat16).astype(jnp.float32) for name, array in params.items()}


def _listed(texts: Iterable[Any]) -> list[str | bytes]:
    """The texts as a list, a column of a table too. What is no text, as None and NaN, is a UserError with its place."""
    listed = list(texts)
    wrong = [place for place, text in enumerate(listed) if not isinstance(text, str | bytes)]
    if wrong:
        first = ", ".join(f"{place} ({listed[place]!r})" for place in wrong[:SHOWN]) + ", ..." * (len(wrong) > SHOWN)
        raise UserError(
            f"{len(wrong):,} of {len(listed):,} are no texts, counted from 0 at {first}; leave them out, or give ''"
        )
    return listed


def _check_feature(feature):
    if feature not in encode.FEATURES:
        raise UserError(f"no feature {feature!r}; there are: {', '.join(encode.FEATURES)}")


class LanguageModel:
    """A trained mLSTM: features of texts, traces, logits, bits per byte, samples."""

    def __init__(
        self,
        params: Params,
        path: Path,
        *,
        is_run: bool = False,
        update: int | None = None,
        validation_bits_per_byte: float | None = None,
        trained_on: str | None = None,
        precision: Precision | None = None,
    ):
        self.params, self.path, self.is_run, self.update = params, path, is_run, update
        self.validation_bits_per_byte, self.trained_on = validation_bits_per_byte, trained_on
        self.hidden, self.inputs, self.outputs = len(params["wmh"]), len(params["embed"]), len(params["out_b"])
        self.embed = params["embed"].shape[1]
        self.precision: Precision = precision or default_precision()
        self.digest = checkpoint.digest(params)

    def __repr__(self) -> str:
        about = [f"{self.hidden} units", f"embed {self.embed}", self.precision]
        if self.update is not None:
            about.append(f"update {self.update:,}")
        if self.validation_bits_per_byte is not None:
            about.append(f"{self.validation_bits_per_byte:.3f} bits per byte on validation text")
        return f"<LanguageModel {self.name}: {', '.join(about)}>"

    @cached_property
    def weights(self) -> Weights:
        """The parameters as the loops want them, prepared when first needed: until then memory holds one copy only."""
        return jax.jit(parameters.prepare_to_read, static_argnums=1)(self.params, self.precision)

    @property
    def kept(self) -> Run:
        """Where pictures and records are kept: in the run, or, laid out alike, in the cache where that cannot be."""
        if self.is_run and os.access(self.path, os.W_OK):
            return Run(self.path)
        return Run(cache_dir() / self.digest[:16])

    @property
    def _beside(self) -> Path:
        return Run(self.path if self.path.is_dir() else self.path.parent).unit_records

    @property
    def record_dirs(self) -> list[Path]:
        """Where records of found units lie: beside our own weights, saved ones too, and where pictures are `kept`."""
        ours = self.is_run or (self._beside.parent / "config.json").is_file()
        found = list(dict.fromkeys([self._beside] * ours + [self.kept.unit_records]))
        return found[::-1] if self.path == PRETRAINED else found  # nothing is written into the package

    @property
    def name(self) -> str:
        """What opens it: its path, or "pretrained"."""
        return name_of(self.path)

    @property
    def licences(self) -> list[Path]:
        """Files beside the weights that say under which licence they are given out: LICENSE..."""
        return sorted(filter(Path.is_file, self._beside.parent.glob("LICENSE*")))

    @property
    def _own_records(self) -> list[Path]:
        """Where the records lie that go with the weights: beside them where there are any, whatever else was found."""
        beside = self._beside in self.record_dirs and unit_record.found([self._beside], self.digest)
        return [self._beside] if beside else self.record_dirs

    @property
    def record_dir(self) -> Path:
        """Where records of found units are written: the first of `record_dirs` where that can be."""
        if self.path == PRETRAINED:
            return self.kept.unit_records
        return next((found for found in self.record_dirs if os.access(found.parent, os.W_OK)), self.record_dirs[-1])

    @property
    def unit(self) -> UnitRecord:
        """The record of the unit that carries sentiment. UserError where none was found, or those of several tasks."""
        return self.unit_of()

    def unit_of(self, task: str | None = None) -> UnitRecord:
        """The record of the unit that was found on a task; None is the only one beside the weights, as that which came
        with the package's model, or else the only one."""
        folders = self.record_dirs if task else self._own_records
        record = unit_record.load(folders, self.digest, task)
        self.require_unit(record.unit)
        return record

    def require_bytes(self) -> None:
        """Raise UserError unless the model reads and predicts bytes."""
        symbols = f"{self.path} reads {self.inputs} symbols and predicts {self.outputs}: it is not a model of bytes"
        if not self.inputs == self.outputs == 256:
            raise UserError(f"{symbols}; in Python, model.read takes its ids")

    def require_unit(self, unit: Any) -> None:
        """Raise UserError unless this is the number of a unit, which 2.0 and True are not."""
        known = isinstance(unit, int | np.integer) and not isinstance(unit, bool) and 0 <= unit < self.hidden
        if not known:
            raise UserError(f"unit {unit!r} does not exist; this model has units 0 to {self.hidden - 1}")

    def encode(
        self, texts: Iterable[Any], feature: Feature = "cell", show_progress: bool = False
    ) -> Float[np.ndarray, "texts hidden"]:
        """The state after each text's last byte, float32 [n, hidden]. Texts are framed (`text.frame`), bytes not.

        What is neither, as None and NaN in a column of a table, is a UserError that says where.
        """
        self.require_bytes()
        if isinstance(texts, str | bytes):
            raise UserError("encode takes a list of texts")
        _check_feature(feature)
        framed = [text if isinstance(text, bytes) else frame(text) for text in _listed(texts)]
        with progress("encoding", sum(map(len, framed)), show_progress) as done:
            return encode.features(self.weights, framed, feature, done)

    def predict(self, texts: Iterable[Any], task: str | None = None, show_progress: bool = False) -> Predictions:
        """The sentiment of texts by the unit that was found on `task`; None is the only one. As `mlstm score` has it.

        An empty text has none: NaN, NaN and "".
        """
        if isinstance(texts, str | bytes):
            raise UserError("predict takes a list of texts")
        record, listed = self.unit_of(task), _listed(texts)
        value = self.encode(listed, record.feature, show_progress)[:, record.unit].astype(np.float64)
        if not np.isfinite(value).all():
            raise UserError("the unit's values are not finite: the weights are damaged, or their training diverged")
        empty = np.array([(text if isinstance(text, bytes) else frame(text)) in (b"", EMPTY) for text in listed], bool)
        value[empty] = np.nan
        label = np.where(unit_record.positive(value, record), "positive", "negative")
        return Predictions(value, unit_record.probability(value, record), np.where(empty, "", label))

    def heatmap(self, texts: str | Iterable[Any], unit: int | None = None, task: str | None = None) -> HeatMap:
        """A text, or several, byte by byte, coloured by the unit's value; a notebook shows it in colour.

        Unit, feature and scale are those of the unit record: the only one, or that of `task`. Of another unit the cell
        state is shown, on the scale of these very texts. UserError where there is neither a record nor a unit.
        """
        listed = _listed([texts] if isinstance(texts, str) else texts)
        listed = [to_text(text) if isinstance(text, bytes) else text for text in listed]
        try:
            record = self.unit_of(task)
            chosen = record.unit if unit is None else unit
        except UserError:
            if unit is None:
                raise
            record, chosen = None, unit
        self.require_unit(chosen)
        if record and chosen != record.unit:
            record = None  # it tells nothing of this unit
        values = self.trace_unit(listed, chosen, record.feature if record else "cell")
        return heatmap.draw(listed, values, chosen, record)

    def trace(self, text: str, feature: Feature = "cell") -> Float[np.ndarray, "bytes hidden"]:
        """The state after every byte of the framed text, float32 [bytes, hidden]."""
        self.require_bytes()
        _check_feature(feature)
        pieces = encode.trace(self.weights, frame(text), zero_state(self.weights, 1), None, feature)
        return np.concatenate([piece for piece, _ in pieces])

    def trace_unit(
        self, texts: Sequence[str], unit: int, feature: Feature = "cell", show_progress: bool = False
    ) -> list[Float[np.ndarray, "_"]]:
        """One unit's state after every byte of every framed text, float32 [bytes] each: a column of `trace`."""
        self.require_bytes()
        self.require_unit(unit)
        _check_feature(feature)
        framed = [frame(text) for text in texts]
        with progress("reading byte by byte", sum(map(len, framed)), show_progress) as done:
            return encode.trace_unit(self.weights, framed, unit, feature, done)

    def read(
        self,
        data: bytes | Sequence[int] | Integer[np.ndarray, "n"],
        state: State | None = None,
        clamp: Clamp | None = None,
    ) -> tuple[Float[np.ndarray, "bytes vocab"], State]:
        """Logits of the byte after every byte of `data`, float32 [n, 256], and the state (c, h). Raw bytes, no framing.

        Of a model that is not of bytes, `data` are its ids, 0 ... inputs - 1, and the logits [n, outputs]. Other ids
        are a UserError.
        """
        if not (isinstance(data, bytes) and self.inputs == 256):
            known = all(isinstance(i, int | np.integer) and 0 <= i < self.inputs for i in data)
            if not known:
                raise UserError(f"this model reads the ids 0 to {self.inputs - 1}")
            data = bytes(list(data))
        state = zero_state(self.weights, 1) if state is None else state
        return encode.read(self.weights, data, state, self._clamp(clamp))

    def bits_per_byte(self, data: bytes) -> float:
        """Mean bits that bytes 2 ... n of `data` cost, from the zero state. Fewer than 2 bytes are a UserError."""
        self.require_bytes()
        if not isinstance(data, bytes):
            raise UserError(f"bits per byte takes bytes, as of text.encode(), not {data!r}")
        if len(data) < 2:
            raise UserError("bits per byte needs at least 2 bytes")
        nats, place = 0.0, 1
        for logits, _ in encode.logits(self.weights, data[:-1], zero_state(self.weights, 1)):
            targets = np.frombuffer(data[place : place + len(logits)], np.uint8)
            log_probs = np.asarray(jax.nn.log_softmax(logits))
            nats -= float(log_probs[np.arange(len(targets)), targets].sum())
            place += len(targets)
        return nats / (len(data) - 1) / np.log(2)

    def generate(
        self,
        prime: str = "",
        num: int = 1,
        length: int = 200,
        clamp: generate.Schedule | None = None,
        *,
        sentiment: float | None = None,
        task: str | None = None,
        raw: bool = False,
        show_progress: bool = False,
        on_bytes: Callable[[int, bytes], None] = lambda sample, piece: None,
        **options: Any,
    ) -> list[str]:
        """`num` texts: the prime and `length` bytes that follow, as valid UTF-8 (other bytes show as U+FFFD).

        Reads "\\n " + prime (`raw`: the prime as it is), then holds the units of `clamp` while it writes: {12: 1.0}
        holds one value, {12: [(0, 1.0), (200, -1.0), (300, None)]} another from byte 200 on, and none from byte 300 on.
        `sentiment` holds the unit that was found on `task` (None: the only one), so many deviations from neutral; above
        0 is positive. `options` are the fields of `SamplingOptions`, as temperature=0.7. Sample i has the key
        fold_in(seed, i).
        `on_bytes(i, bytes)` is called with its bytes as they are written.
        """
        self.require_bytes()
        if num < 1 or length < 0:
            raise UserError("num must be at least 1 and length 0 or more")
        drawn = SamplingOptions(**options)
        if sentiment is not None:
            clamp = dict(clamp or {}) | self.sentiment_clamp(sentiment, task, clamp or {}, drawn)
        elif task is not None:
            raise UserError("`task` says whose unit `sentiment` holds; give that, too")
        self._clamp(dict.fromkeys(clamp or {}, 0.0))  # a unit that is only freed must exist, too
        held = {byte: self._clamp(values) for byte, values in generate.stretches(clamp or {}).items()}
        start = to_bytes(prime if raw else "\n " + prime)
        with progress("sampling", num * length, show_progress) as done:

            def both(sample: int, piece: bytes) -> None:
                done(len(piece))
                on_bytes(sample, piece)

            written = generate.generate(self.weights, start, num, length, held, drawn, both)
        return [show(to_bytes(prime) + text) for text in written]

    def sentiment_clamp(
        self, sentiment: float, task: str | None, clamp: Mapping[int, Any], options: SamplingOptions
    ) -> dict[int, float]:
        """The unit that was found on a task and the value at which `sentiment` holds it, beside the units of `clamp`.

        UserError where `clamp` holds it already, and where the options hold another feature than the cell state.
        """
        if options.clamp_feature != "cell":
            raise UserError("`sentiment` holds a cell state; leave `clamp_feature` out")
        record = self.unit_of(task)
        if record.unit in clamp:
            raise UserError(f"`sentiment` holds unit {record.unit}, and so does `clamp`")
        return {record.unit: unit_record.clamp_value(record, sentiment)}

    def save(self, path: str | Path, format: formats.Format = "safetensors", dtype: Precision = "float32") -> None:
        """Write the weights into a new folder: "openai" (0.npy ... 14.npy), "seed" (model.npy) or "safetensors".

        The last comes with config.json, a model card and the records of found units, ready for a model hub. In
        bfloat16, which it alone takes, it is half as large; weights that this rounds are others, and have no records.
        Licence files that lie beside the weights go along.
        """
        params, digest = self.params, self.digest
        if dtype != "float32":
            params = _rounded(params)
            digest = checkpoint.digest(params)
        path, records = storage.new(path), unit_record.found(self._own_records, digest)
        about = {
            "library": "mlstm_jax",
            "model": dict(hidden=self.hidden, embed=self.embed, inputs=self.inputs, outputs=self.outputs),
            "parameters": sum(array.size for array in self.params.values()),
            "digest": digest,
            "trained_on": self.trained_on,
            "update": self.update,
            "validation_bits_per_byte": self.validation_bits_per_byte,
        }
        with storage.sent(path, is_new=True):
            formats.write(params, path, format, about, records, dtype, self.licences)

    def _clamp(self, clamp: Clamp | None) -> Held | None:
        return self.held(clamp) if clamp else None

    def held(self, clamp: Clamp) -> Held:
        """Values by unit as vectors. A unit that does not exist and a value that is no finite number are UserErrors."""
        held = Held(np.zeros(self.hidden, bool), np.zeros(self.hidden, np.float32))
        for unit, value in clamp.items():
            self.require_unit(unit)
            number = np.asarray(value)
            known = number.ndim == 0 and number.dtype.kind in "iuf" and abs(value) <= float(np.finfo(np.float32).max)
            if not known:
                raise UserError(f"unit {unit} cannot be held at {value!r}")
            held.units[unit], held.values[unit] = True, number
        return held
