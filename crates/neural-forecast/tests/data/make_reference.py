"""Writes reference.json: numbers that the Rust tests compare with.

Run with an environment that has neuralforecast (coreforecast, pandas and numpy come with it):
    python make_reference.py > reference.json
The versions used are recorded inside the file.
"""

import json
import math

import coreforecast
import neuralforecast
import numpy as np
import pandas as pd
import utilsforecast
from coreforecast.grouped_array import GroupedArray
from coreforecast.scalers import (
    LocalBoxCoxScaler,
    LocalMinMaxScaler,
    LocalRobustScaler,
    LocalStandardScaler,
)
from neuralforecast.losses.pytorch import level_to_outputs, quantiles_to_outputs
from neuralforecast.utils import (
    add_conformal_distribution_intervals,
    add_conformal_error_intervals,
)
from utilsforecast import losses


def number(x):
    x = float(x)
    return None if math.isnan(x) else x


def scalers():
    makers = {
        "standard": LocalStandardScaler,
        "robust": lambda: LocalRobustScaler("mad"),
        "robust-iqr": lambda: LocalRobustScaler("iqr"),
        "minmax": LocalMinMaxScaler,
        "boxcox": lambda: LocalBoxCoxScaler("loglik", lower=0.0),
    }
    nan = float("nan")
    rng = np.random.default_rng(7)
    series = {
        "short": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8],
        "constant": [5, 5, 5, 5],
        "one": [7],
        "leading": [nan, nan, 1, 2, 4],
        "empty": [nan, nan],
        "negative": [-1, 2, -3, 4],
        "zero": [0, 1, 2, 3],
        "lognormal": rng.lognormal(2, 1, 60).tolist(),
        "large": (1e6 + rng.normal(0, 10, 50)).tolist(),
    }
    out = []
    for name, values in series.items():
        data = np.array(values, dtype=np.float32)
        group = GroupedArray(data, np.array([0, len(data)]))
        for kind, make in makers.items():
            if kind == "boxcox" and name == "negative":
                continue
            scaler = make().fit(group)
            forward = scaler.transform(group)
            probe = np.array([-0.5, 0.0, 0.25, 1.5], dtype=np.float32)
            back = scaler.inverse_transform(GroupedArray(probe, np.array([0, 4])))
            out.append(
                {
                    "series": name,
                    "kind": kind,
                    "data": [number(v) for v in data],
                    "stats": [number(v) for v in scaler.stats_[0]],
                    "transformed": [number(v) for v in forward],
                    "probe": [number(v) for v in probe],
                    "inverse": [number(v) for v in back],
                }
            )
    return out


def calendar():
    cases = [
        ("h", "2024-02-28 22:00:00"),
        ("15min", "2023-12-31 23:45:00"),
        ("3h", "2024-02-29 21:30:00"),
        ("s", "2024-01-01 00:00:59"),
        ("D", "2024-02-27"),
        ("7D", "2024-02-27"),
        ("B", "2024-03-01"),
        ("B", "2024-03-02"),
        ("2B", "2024-03-03"),
        ("B", "2024-02-28 06:00:00"),
        ("W", "2024-02-25"),
        ("W-SUN", "2024-02-26"),
        ("W-MON", "2024-02-26"),
        ("W-WED", "2024-02-26"),
        ("2W", "2024-02-26"),
        ("2W-SAT", "2024-02-24"),
        ("ME", "2024-01-31"),
        ("ME", "2023-01-31"),
        ("ME", "2024-01-15"),
        ("2ME", "2024-01-15"),
        ("ME", "2024-01-31 10:00:00"),
        ("MS", "2024-11-01"),
        ("MS", "2024-11-15"),
        ("3MS", "2024-11-15"),
        ("QE", "2023-12-31"),
        ("QE", "2024-01-31"),
        ("QE-NOV", "2023-11-30"),
        ("QE-JAN", "2024-02-10"),
        ("QS", "2024-01-01"),
        ("QS-FEB", "2024-01-01"),
        ("QS", "2024-02-20"),
        ("2QS", "2024-02-20"),
        ("2QE", "2024-03-31"),
        ("YE", "2023-12-31"),
        ("YE-JUN", "2024-06-30"),
        ("YE-FEB", "2023-02-28"),
        ("YS", "2024-01-01"),
        ("YS-APR", "2024-03-31"),
        ("2YE", "2024-05-05"),
        ("YE", "1969-06-30"),
        ("ME", "1960-01-31"),
        ("W-FRI", "1969-12-30"),
        ("B", "1969-12-27"),
    ]
    out = []
    for freq, last in cases:
        offset = pd.tseries.frequencies.to_offset(freq)
        first = pd.Timestamp(last) + offset
        stamps = [first + i * offset for i in range(8)]
        out.append(
            {"freq": freq, "name": offset.freqstr, "last": last, "next": [str(s) for s in stamps]}
        )
    return out


def conformal():
    rng = np.random.default_rng(11)
    n_series, windows, h = 2, 3, 4
    scores = np.abs(rng.normal(0, 2, n_series * windows * h)).astype(np.float32)
    forecast = rng.normal(10, 3, n_series * h).astype(np.float32)
    frame = pd.DataFrame({"M": scores})
    out = {
        "windows": windows,
        "horizon": h,
        "scores": [number(v) for v in scores],
        "forecast": [number(v) for v in forecast],
        "cases": [],
    }
    methods = {
        "conformal_distribution": add_conformal_distribution_intervals,
        "conformal_error": add_conformal_error_intervals,
    }
    asks = [
        {"level": [80, 90], "quantiles": None},
        {"level": [50], "quantiles": None},
        {"level": None, "quantiles": [0.1, 0.5, 0.8]},
    ]
    for name, method in methods.items():
        for ask in asks:
            values, columns = method(
                forecast.reshape(-1, 1), frame, "M", windows, n_series, h, **ask
            )
            out["cases"].append(
                {
                    "method": name,
                    **ask,
                    "columns": columns,
                    "values": [[number(v) for v in row[1:]] for row in values],
                }
            )
    return out


def names():
    levels = [[80, 90], [90, 80], [97.5], [0, 50]]
    quantiles = [[0.1, 0.5, 0.9], [0.9, 0.05, 0.333], [0.5], [0.025, 0.975]]
    out = {"levels": [], "quantiles": []}
    for level in levels:
        qs, suffixes = level_to_outputs(level)
        out["levels"].append(
            {"ask": level, "quantiles": [number(q) for q in qs], "names": [str(s) for s in suffixes]}
        )
    for qs in quantiles:
        values, suffixes = quantiles_to_outputs(qs)
        out["quantiles"].append({"ask": qs, "names": [str(s) for s in suffixes]})
    return out


def metrics():
    rng = np.random.default_rng(3)
    season, n_train, n_test, level = 4, 30, 9, 80
    series = rng.normal(20, 4, n_train + n_test).astype(np.float32)
    train = pd.DataFrame({"unique_id": "a", "ds": range(n_train), "y": series[:n_train]})
    columns = {
        "M": series[n_train:] + rng.normal(0, 2, n_test),
        "M-lo-80": series[n_train:] - np.abs(rng.normal(0, 3, n_test)) + 1,
        "M-hi-80": series[n_train:] + np.abs(rng.normal(0, 3, n_test)) - 0.5,
    }
    columns = {name: values.astype(np.float32) for name, values in columns.items()}
    test = pd.DataFrame(
        {
            "unique_id": "a",
            "ds": range(n_train, n_train + n_test),
            "y": series[n_train:],
            **columns,
        }
    )

    def one(frame, column="M"):
        return number(frame[column].iloc[0])

    scaled = dict(seasonality=season, train_df=train)
    return {
        "season": season,
        "level": level,
        "train": [number(v) for v in train["y"]],
        "actual": [number(v) for v in test["y"]],
        "point": [number(v) for v in test["M"]],
        "low": [number(v) for v in test["M-lo-80"]],
        "high": [number(v) for v in test["M-hi-80"]],
        "mae": one(losses.mae(test, ["M"])),
        "mse": one(losses.mse(test, ["M"])),
        "rmse": one(losses.rmse(test, ["M"])),
        "smape": one(losses.smape(test, ["M"])),
        "mase": one(losses.mase(test, ["M"], **scaled)),
        "quantile_loss": one(losses.quantile_loss(test, {"M": "M-lo-80"}, q=0.1)),
        "scaled_quantile_loss": one(
            losses.scaled_quantile_loss(test, {"M": "M-lo-80"}, q=0.1, **scaled)
        ),
        "coverage": one(losses.coverage(test, ["M"], level)),
        "winkler": one(losses.winkler_score(test, ["M"], level)),
    }


if __name__ == "__main__":
    versions = {
        "neuralforecast": neuralforecast.__version__,
        "coreforecast": coreforecast.__version__,
        "utilsforecast": utilsforecast.__version__,
        "pandas": pd.__version__,
        "numpy": np.__version__,
    }
    record = {
        "made_by": "make_reference.py",
        "versions": versions,
        "scalers": scalers(),
        "calendar": calendar(),
        "conformal": conformal(),
        "names": names(),
        "metrics": metrics(),
    }
    print(json.dumps(record, indent=None, separators=(",", ":")).replace('},{"', '},\n{"'))
