#!/usr/bin/env python3
"""Trains and measures the shipped default models, with the neuralforecast package.

    python models/recipe.py train NAME --out DIR   # lstm or patchtst; wants a GPU
    python models/recipe.py evaluate DIR --m4 FOLDER --etth1 FILE [--json FILE]

Training reads no data: every series is generated here from a seed. The measurements read M4 hourly
and ETTh1 files given on the command line; nothing of them reaches training.
Not part of the build: the folders it writes are committed.
"""

import argparse
import json
import os

import numpy as np

QUANTILES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]

# --- generated series -------------------------------------------------------------------------

PERIODS = [4, 5, 6, 7, 8, 10, 12, 13, 14, 16, 18, 20, 24, 26, 28, 30, 36, 42, 48, 52, 60, 72, 96, 168]


def template(period, rng):
    """One cycle of a season: zero mean, unit spread."""
    kind = rng.integers(6)
    x = np.arange(period) / period
    if kind == 0:  # few harmonics
        y = np.zeros(period)
        for k in range(1, rng.integers(2, 6)):
            y += rng.normal() / k ** rng.uniform(0.5, 2) * np.sin(2 * np.pi * (k * x + rng.random()))
    elif kind in (1, 2):  # smooth random cycle
        y = rng.normal(size=period)
        spectrum = np.fft.rfft(y)
        cut = rng.uniform(1.0, max(1.5, period / 4))
        spectrum *= np.exp(-((np.arange(len(spectrum)) / cut) ** 2))
        y = np.fft.irfft(spectrum, period)
    elif kind == 3:  # bumps: morning and evening peaks
        y = np.zeros(period)
        for _ in range(rng.integers(1, 4)):
            d = np.abs((x - rng.random() + 0.5) % 1 - 0.5)
            y += rng.uniform(0.3, 1) * np.exp(-((d / rng.uniform(0.03, 0.2)) ** 2) / 2)
    elif kind == 4:  # day and night, smoothed edges
        d = np.sin(2 * np.pi * (x + rng.random())) - rng.uniform(-0.7, 0.7)
        y = np.tanh(d * rng.uniform(1, 8)) + 0.2 * rng.normal() * np.sin(4 * np.pi * x)
    else:  # free cycle
        y = rng.normal(size=period)
        y = np.convolve(np.tile(y, 3), np.hanning(rng.integers(5, 8)), "same")[period : 2 * period]
    y = y - y.mean()
    return y / (y.std() + 1e-9)


def seasons(n, rng):
    """Seasonal part: one cycle, often with a longer one over it (days in a week)."""
    roll = rng.random()
    if roll < 0.35:
        period = 24
    elif roll < 0.9:
        period = int(rng.choice(PERIODS))
    else:
        period = int(np.exp(rng.uniform(np.log(3), np.log(200))))
    t = np.arange(n) + rng.integers(0, 10000)
    first = template(period, rng)
    y = first[t % period]
    cycles = 7 if rng.random() < 0.8 else int(rng.choice([2, 4, 5, 12]))
    if period * cycles <= 400 and rng.random() < (0.65 if period == 24 else 0.3):
        cycle = (t // period) % cycles
        how = rng.integers(4)
        if how in (0, 1) and cycles >= 4:  # days off have another shape and level
            off = cycle >= cycles - rng.integers(1, 3)
            other = rng.uniform(0, 1) * first + rng.uniform(0, 0.8) * template(period, rng)
            y = np.where(off, other[t % period] + rng.normal() * rng.uniform(0, 1.2), y)
            if rng.random() < 0.5:
                y = y + (rng.normal(size=cycles) * rng.uniform(0, 0.3))[cycle]
        elif how == 2:  # every day its own scale and level
            spread = rng.uniform(0.05, 0.6)
            scale = (1 + spread * rng.normal(size=cycles))[cycle]
            y = y * scale + (spread * rng.normal(size=cycles))[cycle]
        else:  # a free long cycle added
            y = y + rng.uniform(0.2, 1.5) * template(period * cycles, rng)[t % (period * cycles)]
    if rng.random() < 0.3:  # amplitude drifts
        drift = np.cumsum(rng.normal(size=n)) / np.sqrt(n)
        y = y * np.exp(rng.uniform(0.1, 0.8) * drift)
    if rng.random() < 0.15:  # a second, unrelated season
        other = int(rng.choice(PERIODS))
        y = y + rng.uniform(0.2, 1) * template(other, rng)[t % other]
    return y


def trend(n, rng):
    x = np.linspace(0, 1, n)
    kind = rng.integers(6)
    if kind <= 1:
        return np.zeros(n)
    if kind == 2:
        return x * rng.normal()
    if kind == 3:  # broken line
        knots = np.sort(rng.random(rng.integers(1, 5)))
        return sum(rng.normal() * np.maximum(x - k, 0) for k in knots) + rng.normal() * x
    if kind == 4:  # curved, growing or settling
        return rng.normal() * np.expm1(rng.uniform(-3, 3) * x)
    return np.cumsum(np.cumsum(rng.normal(size=n))) / n**1.5  # smooth wander


def noise(n, rng):
    kind = rng.integers(6)
    e = rng.standard_t(rng.uniform(3, 8), n) if kind == 0 else rng.normal(size=n)
    if kind in (1, 2, 3):  # autoregressive
        a, out = rng.uniform(0.2, 0.98), np.empty(n)
        last = 0.0
        for i in range(n):
            last = a * last + e[i]
            out[i] = last
        e = out * np.sqrt(1 - a * a)
    if kind == 4:  # spread comes in bursts
        e = e * np.exp(0.7 * np.cumsum(rng.normal(size=n)) / np.sqrt(n) * 2)
    return e


def intermittent(n, rng):
    """Counts with many zeros, their rate constant, seasonal or drifting."""
    rate = rng.uniform(0.03, 0.7) * np.ones(n)
    if rng.random() < 0.5:
        period = int(rng.choice([7, 12, 24]))
        rate = rate * np.exp(0.8 * template(period, rng)[np.arange(n) % period])
    size = rng.geometric(rng.uniform(0.1, 0.9), n) if rng.random() < 0.5 else rng.poisson(3, n) + 1
    return np.where(rng.random(n) < np.clip(rate, 0, 1), size, 0).astype(float)


def walk(n, rng):
    """Integrated noise: random walk, with momentum or drift at times."""
    e = noise(n, rng)
    if rng.random() < 0.3:
        e = e + rng.uniform(-0.2, 0.2)
    y = np.cumsum(e)
    if rng.random() < 0.2:  # geometric
        y = np.exp(np.clip(y * rng.uniform(0.005, 0.05), -8, 8))
    return y


def shape(n, rng):
    """One series of `n` steps, of no particular scale."""
    kind = rng.random()
    if kind < 0.05:
        return intermittent(n, rng)
    if kind < 0.13:
        y = walk(n, rng)
        if rng.random() < 0.4:
            y = y + y.std() * rng.uniform(0.1, 1) * seasons(n, rng)
        return y
    if kind < 0.15:
        return noise(n, rng)
    if kind < 0.16:
        return np.zeros(n)
    level = np.exp(rng.uniform(-1, 3.5))
    y = seasons(n, rng) + rng.uniform(0, 4) * (rng.random() < 0.7) * trend(n, rng)
    spread = np.exp(rng.uniform(np.log(0.002), np.log(1.0)))
    if rng.random() < 0.25:
        y = y + rng.uniform(0.05, 0.7) * walk(n, rng) / np.sqrt(n) * 3
    if rng.random() < 0.15:  # level shifts
        for at in rng.integers(0, n, rng.integers(1, 4)):
            y[at:] += rng.normal() * 1.5
    e = spread * noise(n, rng)
    if rng.random() < 0.35:  # multiplicative: season and noise grow with the level
        y = np.exp(rng.uniform(0.1, 0.6) * y) * (1 + np.clip(0.3 * e, -0.9, 3))
        y = y / y.std()
    else:
        y = y + e
    if rng.random() < 0.6:
        y = y + level
    if rng.random() < 0.06:  # single outliers
        at = rng.integers(0, n, max(1, n // 200))
        y[at] += rng.normal(size=len(at)) * 6 * y.std()
    if rng.random() < 0.1:
        y = np.maximum(y, np.quantile(y, rng.uniform(0, 0.4)))
    if rng.random() < 0.2:  # steps lost without trace: the season jumps
        for at in rng.integers(0, len(y) - 2, rng.integers(1, 4)):
            y = np.delete(y, slice(at, at + rng.integers(1, 13)))
    return y


def series(rng):
    """One training series: sometimes a mixture of two, at a random scale."""
    n = int(rng.integers(12, 200)) if rng.random() < 0.12 else int(rng.integers(420, 1100))
    y = shape(n, rng)
    if rng.random() < 0.15:
        other = shape(n, rng)
        n = min(len(y), len(other))
        y, other, w = y[:n], other[:n], rng.uniform(0.2, 0.8)
        y = w * y / (y.std() + 1e-9) + (1 - w) * other / (other.std() + 1e-9)
    y = y * 10.0 ** rng.uniform(-2, 4)
    if rng.random() < 0.15 and y.std() > 3:
        y = np.round(y)
    if len(y) < 8 or not np.isfinite(y).all() or np.abs(y).max() > 1e7:
        return series(rng)
    return y.astype(np.float32)


def frame(count, seed):
    """Long frame of `count` generated series with integer stamps."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    parts = [series(rng) for _ in range(count)]
    lengths = np.array([len(p) for p in parts])
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(count), lengths),
            "ds": np.concatenate([np.arange(n) for n in lengths]),
            "y": np.concatenate(parts),
        }
    )


# --- training ---------------------------------------------------------------------------------

MODELS = {
    # Block of 24: neuralforecast's direct LSTM reads step i of the horizon off the hidden state
    # `h` steps earlier, so a short block sees fresher history; longer horizons roll out.
    "lstm": dict(
        kind="LSTM", h=24, input_size=168, encoder_hidden_size=64, encoder_n_layers=2,
        decoder_hidden_size=64, decoder_layers=2, learning_rate=3e-3, max_steps=6530,
    ),
    # Patches of 48 keep the head, which is most of the file, small.
    "patchtst": dict(
        kind="PatchTST", h=48, input_size=336, patch_len=48, stride=48, hidden_size=64, n_heads=4,
        linear_hidden_size=128, encoder_layers=3, dropout=0.0, fc_dropout=0.0, head_dropout=0.0,
        attn_dropout=0.0, revin_subtract_last=False, learning_rate=1e-3, max_steps=20454,
    ),
}


def train(name, out, count, seed):
    import torch
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import LSTM, PatchTST

    torch.set_float32_matmul_precision("high")
    config = dict(MODELS[name])
    kind = {"LSTM": LSTM, "PatchTST": PatchTST}[config.pop("kind")]
    model = kind(
        loss=MQLoss(quantiles=QUANTILES), scaler_type="standard", num_lr_decays=8, batch_size=192,
        step_size=7, windows_batch_size=3072, inference_windows_batch_size=1024,
        start_padding_enabled=True, training_data_availability_threshold=[0.04, 0.2],
        random_seed=7, gradient_clip_val=1.0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, alias=kind.__name__, **config,
    )
    nf = NeuralForecast(models=[model], freq=1)
    nf.fit(frame(count, seed))
    nf.save(out, save_dataset=False, overwrite=True)


# --- measuring --------------------------------------------------------------------------------


def metrics(y, q, scale, levels=QUANTILES):
    """Mean over series of MASE and sMAPE; WQL and coverage over all points."""
    median = q[:, :, levels.index(0.5)]
    mase = np.mean(np.abs(y - median).mean(1) / scale)
    smape = np.mean(200 * np.abs(y - median) / (np.abs(y) + np.abs(median) + 1e-9))
    tau = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    at = [levels.index(t) for t in tau]
    e = y[:, :, None] - q[:, :, at]
    wql = 2 * np.maximum(tau * e, (tau - 1) * e).sum() / np.abs(y).sum() / len(tau)

    def covered(lo, hi):
        return float(np.mean((y >= q[:, :, levels.index(lo)]) & (y <= q[:, :, levels.index(hi)])))

    return dict(
        mase=float(mase), smape=float(smape), wql=float(wql),
        coverage80=covered(0.1, 0.9), coverage90=covered(0.05, 0.95), series=len(y),
    )


def read_m4(folder):
    def rows(path):
        with open(path) as f:
            next(f)
            for line in f:
                cells = [c.strip().strip('"') for c in line.rstrip("\n").split(",")]
                yield np.array([float(c) for c in cells[1:] if c not in ("", "NA")])

    return (
        list(rows(os.path.join(folder, "m4_hourly_train.csv"))),
        list(rows(os.path.join(folder, "m4_hourly_test.csv"))),
    )


def read_etth1(path, stride=168, history=720, h=48):
    """Rolling windows over the last eight months of every column of ETTh1."""
    table = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
    past, future = [], []
    for begin in range(len(table) - 8 * 30 * 24, len(table) - h + 1, stride):
        for column in table.T:
            past.append(column[begin - history : begin])
            future.append(column[begin : begin + h])
    return past, future


def forecast(nf, past, h):
    """Sorted quantile forecasts `[series, h, Q]` of histories of any length."""
    import pandas as pd

    lengths = [len(p) for p in past]
    df = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(past)), lengths),
            "ds": np.concatenate([np.arange(n) for n in lengths]),
            "y": np.concatenate(past).astype(np.float32),
        }
    )
    own = nf.h
    made = nf.predict(df, h=h if h > own else None).drop(columns=["unique_id", "ds"])
    q = made.to_numpy().reshape(len(past), max(h, own), -1)[:, :h]
    return np.sort(q, axis=-1)


def evaluate(folder, m4, etth1, h=48, season=24):
    from neuralforecast import NeuralForecast

    nf = NeuralForecast.load(folder)
    result = {}
    past, future = read_m4(m4)
    scale = np.array([np.abs(p[season:] - p[:-season]).mean() for p in past])
    y = np.stack(future)
    result["m4_hourly"] = metrics(y, forecast(nf, past, h), scale)
    for keep in (24, 60, 120):
        short = forecast(nf, [p[-keep:] for p in past], h)
        result[f"m4_hourly_last{keep}"] = metrics(y, short, scale)
    naive = np.stack([np.tile(p[-season:], 2) for p in past])
    result["m4_hourly_naive_mase"] = float(np.mean(np.abs(y - naive).mean(1) / scale))
    past, future = read_etth1(etth1)
    scale = np.array([np.abs(p[season:] - p[:-season]).mean() for p in past])
    y = np.stack(future)
    result["etth1"] = metrics(y, forecast(nf, past, h), scale)
    naive = np.stack([np.tile(p[-season:], 2) for p in past])
    result["etth1_naive_mase"] = float(np.mean(np.abs(y - naive).mean(1) / scale))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("name", choices=sorted(MODELS))
    one.add_argument("--out", required=True)
    one.add_argument("--count", type=int, default=12000)
    one.add_argument("--seed", type=int, default=2024)
    two = commands.add_parser("evaluate")
    two.add_argument("folder")
    two.add_argument("--m4", required=True)
    two.add_argument("--etth1", required=True)
    two.add_argument("--json")
    args = parser.parse_args()
    if args.command == "train":
        train(args.name, args.out, args.count, args.seed)
    else:
        result = evaluate(args.folder, args.m4, args.etth1)
        print(json.dumps(result, indent=1))
        if args.json:
            with open(args.json, "w") as f:
                json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
