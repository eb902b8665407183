#!/usr/bin/env python3
"""Saves neuralforecast's default LSTM, GRU, PatchTST and NHITS (h 24, L 96) and times their predict().

  neuralforecast_defaults.py FOLDER [--threads 2]

Weights are as initialised: only shapes matter here. Prints one JSON object a model with the p50 of
predict() for one series of 720 hours in microseconds. Then
`NF_BENCH_FOLDERS=FOLDER cargo bench -p neural-forecast-benches --bench forecaster` times ours.
"""
import argparse
import json
import logging
import time
import warnings

import numpy as np
import pandas as pd
import torch
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, LSTM, NHITS, PatchTST


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    t = np.arange(720)
    df = pd.DataFrame({
        "unique_id": "a",
        "ds": pd.date_range("2024-01-01", periods=720, freq="h"),
        "y": np.float32(100 + 30 * np.sin(2 * np.pi * t / 24)),
    })
    quiet = dict(max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
                 enable_checkpointing=False, accelerator="cpu")
    kinds = (LSTM, GRU, PatchTST, NHITS)
    nf = NeuralForecast(models=[k(h=24, input_size=96, **quiet) for k in kinds], freq="h")
    nf.fit(df)
    nf.save(a.folder, save_dataset=False, overwrite=True)
    for model in nf.models:
        one = NeuralForecast(models=[model], freq="h")
        one.fit(df)
        times = []
        for i in range(60):
            start = time.perf_counter()
            one.predict(df=df)
            if i >= 10:
                times.append((time.perf_counter() - start) * 1e6)
        print(json.dumps(dict(peer="neuralforecast.predict", model=type(model).__name__,
                              p50_us=round(float(np.median(times)), 1), runs=len(times))), flush=True)


if __name__ == "__main__":
    main()
