#!/usr/bin/env python3
"""Saves neuralforecast's default LSTM, GRU, PatchTST and NHITS (h 24, L 96) and times their predict().

  neuralforecast_defaults.py FOLDER [--threads 2] [--raw 256 --raw 1024 --raw 4096]

Weights are as initialised: only shapes matter here. Prints one JSON object a model with the p50 of
predict() for one series of 720 hours in microseconds. With --raw also the series a second of the
network's forward pass alone, already scaled windows in and no quantiles, frames or stamps out, in
batches of that size in torch, ONNX Runtime and OpenVINO (f32), where they are installed (their
export needs onnx and onnxscript). Then
`NF_BENCH_FOLDERS=FOLDER cargo bench -p neural-forecast-benches --bench forecaster` times ours.
"""
import argparse
import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import torch
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, LSTM, NHITS, PatchTST


class Raw(torch.nn.Module):
    """A network as a function of its windows alone, [batch, 96, 1]: what an export needs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, y):
        return self.network(dict(insample_y=y, insample_mask=torch.ones_like(y), futr_exog=None,
                                 hist_exog=None, stat_exog=None))


def emit(**row):
    print(json.dumps(row), flush=True)


def p50(call, seconds=2.0, warmup=2):
    """Median of repeated calls, in seconds of wall-clock time."""
    for _ in range(warmup):
        call()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < seconds:
        since = time.perf_counter()
        call()
        times.append(time.perf_counter() - since)
    return float(np.median(times))


def raw_forward(model, batch, threads):
    """Prints how many series a second each peer forecasts with the bare network."""
    network = Raw(model).eval()
    x = torch.randn(batch, 96, 1)

    def row(peer, call):
        emit(peer=peer, mode="raw forward", model=type(model).__name__, batch=batch,
             series_a_second=round(batch / p50(call)))

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        row("torch", lambda: network(x))
        path = os.path.join(folder, "network.onnx")
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(network, (x,), path, dynamo=True)
        if importlib.util.find_spec("onnxruntime"):
            import onnxruntime
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: x.numpy()}
            row("onnxruntime", lambda: session.run(None, feed))
        if importlib.util.find_spec("openvino"):
            import openvino
            hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
                     "INFERENCE_NUM_THREADS": threads}
            request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
            array = x.numpy()
            row("openvino", lambda: request.infer([array], share_inputs=True))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--raw", type=int, action="append", default=[], metavar="BATCH")
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
        emit(peer="neuralforecast.predict", model=type(model).__name__,
             p50_us=round(float(np.median(times)), 1), runs=len(times))
    for model in nf.models:
        for batch in a.raw:
            raw_forward(model, batch, a.threads)


if __name__ == "__main__":
    main()
