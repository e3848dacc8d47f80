"""A unit record like those that `mlstm eval` writes."""

from mlstm_jax.unit_record import UnitRecord

RECORD = UnitRecord(
    digest="d1",
    update=1000,
    task="sst",
    note="made for a test",
    feature="cell",
    unit=2,
    sign=-1,
    mean_negative=0.1 + 0.2,
    mean_positive=-0.7,
    deviation=1 / 3,
    threshold=-0.2,
    a=-4.0,
    b=0.5,
    c=0.25,
    coefficients=(0.0, 1e-17, -2.0),
    intercept=0.1,
    accuracy_all=0.9,
    accuracy_alone=0.85,
    units_used=2,
)
