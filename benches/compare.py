#!/usr/bin/env python3
"""Runs the workloads beside their peers on this machine and prints a table of ratios.

  compare.py --peers PEERS.PY --binary NEURAL-FORECAST [--rounds 5] [--seconds 2] [--workload lstm_a]
             [--precision f32 --precision bf16 --precision int8]
  compare.py --device cuda --peers PEERS.PY --binary NEURAL-FORECAST --precision f16 [--seconds 0.3]

Peers and ours alternate, workload by workload, so that a machine that slows down slows both.
A row of the table is the median over the rounds of ours / best peer of the same round, where the best
peer is the fastest that ran in that precision; the figures beside it are the medians of p50 in
microseconds. PEERS.PY prints one JSON object a line; BINARY is the command-line tool, asked for
`bench --json`. Every round is kept in --log, one JSON object a line, so that a table can be made anew
with --from-log.

On a GPU every row has two figures and two ratios: windows and forecasts on the device (as the peers'
mode `device`), and from host memory to host memory (their `end-to-end`). Full windows run the latency
class, large batches the throughput class. Ours in f32 and in tf32 stand beside the peers' tf32, which
is all that they offer by that name.

On a CPU the peers have no int8 rows: ours in int8 stand beside the best peer of bf16 and f32, and the
row says which of the two it was.

A claim needs every peer: the table's head says which ran, in which version, and a row says which peer
was the best. Below 1 is faster than the best peer.
"""
import argparse
import json
import statistics
import subprocess
import sys


WORKLOADS = [
    "lstm_a",
    "lstm_b",
    "lstm_c",
    "lstm_guide_128",
    "lstm_guide_256",
    "transformer_small",
    "transformer_guide",
]


def lines(text):
    """Objects of a JSON array, or of one JSON object a line."""
    text = text.strip()
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Log(list):
    """Rows, each also in a file as soon as it is there: a run that is cut short is not lost."""

    def __init__(self, path):
        super().__init__()
        self.file = open(path, "w") if path else None

    def append(self, row):
        super().append(row)
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)


def call(command, log, side, number):
    print(f"round {number}: {side}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}")
    for row in lines(done.stdout):
        log.append(dict(row, side=side, round=number))


# What a row of `torch.compile` is valid for: it is slow to start, so it is measured once.
EVERY_ROUND = -1


def measure_gpu(args):
    """Rounds of peers and ours on one NVIDIA GPU; within a round all peers, then all of ours."""
    log = Log(args.log)
    peers = [args.python, args.peers, "--device", "cuda"]
    chosen = sum((["--workload", name] for name in args.workload), [])
    for name in args.compile:
        call(peers + ["--workload", name, "--compile"], log, "peers", EVERY_ROUND)
    for number in range(args.rounds):
        call(peers + (chosen if args.workload != WORKLOADS else []), log, "peers", number)
        for name in ["all"] if args.workload == WORKLOADS else args.workload:
            for precision in args.precision:
                for mode in ("full-window", "throughput"):
                    ours = [args.binary, "bench", "--json", "--device", "cuda", "--precision", precision]
                    ours += ["--workload", name, "--mode", mode, "--error-windows", "0"]
                    ours += ["--seconds", str(args.seconds)]
                    call(ours, log, "ours", number)
    return log


def gpu_table(log):
    """The text of a GPU's part of RESULTS.md."""
    versions = next((row["versions"] for row in log if "versions" in row), {})
    rows = [row for row in log if row["side"] == "ours" and "p50_us" in row]
    peers = [row for row in log if row["side"] == "peers" and "p50_us" in row]
    rounds = 1 + max((row["round"] for row in log), default=-1)
    names = sorted({row["peer"] for row in peers})
    out = []
    if rows:
        facts = ", ".join(f"{k} {v}" for k, v in dict(rows[0].get("device_features", [])).items())
        out.append(f"Ours: neural-forecast {rows[0]['version']} on {rows[0]['device_name']} ({facts}).")
    out.append(f"Peers: {', '.join(names)} of {versions}; {rounds} alternating rounds.")
    missing = {"torch-eager", "torch-cuda-graph"} - set(names)
    if missing:
        out.append(f"**Missing peers: {', '.join(sorted(missing))}: no row below is a claim.**")
    compiled = sorted({row["workload"] for row in peers if row["peer"] == "torch-compile"})
    out.append(f"torch.compile (max-autotune) was measured once, on: {', '.join(compiled) or 'nothing'}.")
    out.append("Medians of p50 in µs; a ratio is the median over rounds of ours / best peer.")
    out.append("")
    out.append("| workload | batch | format | on device | p99 | best peer | ratio | end to end | p99 | p99.9 | max | best peer | ratio | % peak | W | kernels |")
    out.append("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    median = lambda values: statistics.median(values) if values else float("nan")
    for key in dict.fromkeys((r["workload"], r["batch"], r["precision"]) for r in rows):
        mine = [r for r in rows if (r["workload"], r["batch"], r["precision"]) == key]
        theirs = {"f32": "tf32"}.get(key[2], key[2])

        def against(mode, figure):
            pairs = []
            for row in mine:
                same = [p for p in peers if p["workload"] == key[0] and p["batch"] == key[1]
                        and p["precision"] == theirs and p["mode"] == mode
                        and p["round"] in (row["round"], EVERY_ROUND)]
                if same:
                    pairs.append((figure(row)["p50_us"], min(p["p50_us"] for p in same)))
            return f"{median([p for _, p in pairs]):,.1f}", f"{median([a / b for a, b in pairs]):.2f}"

        device = lambda row: row.get("device_resident") or row
        host = lambda row: row.get("end_to_end") or row
        of = lambda where, what: f"{median([where(r)[what] for r in mine]):,.1f}"
        watts = [r["power_watts"] for r in mine if r.get("power_watts")]
        peak = [r["peak_fraction"] * 100 for r in mine if r.get("peak_fraction")]
        kernels = ", ".join(f"{k}×{n}" for k, n in mine[0].get("kernels", {}).items())
        cells = [*key, of(device, "p50_us"), of(device, "p99_us"), *against("device", device),
                 of(host, "p50_us"), of(host, "p99_us"), of(host, "p999_us"), of(host, "max_us"),
                 *against("end-to-end", host),
                 f"{median(peak):.1f}", f"{median(watts):.0f}", kernels]
        out.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(out)


def measure(args):
    log = Log(args.log)
    threads = ["--threads", str(args.threads)] if args.threads else []
    batches = [["--batch", str(batch)] for batch in args.batch] or [[]]
    for number in range(args.rounds):
        for name in args.workload:
            chosen = ["--workload", name] + threads
            peers = [args.python, args.peers, "--device", "cpu"] + chosen
            call(peers + sum(batches, []), log, "peers", number)
            for precision in args.precision:
                ours = [args.binary, "bench", "--json", "--device", "cpu", "--precision", precision]
                ours += ["--seconds", str(args.seconds), "--error-windows", str(args.error_windows)]
                for batch in batches:
                    call(ours + chosen + batch, log, "ours", number)
    return log


# What the peers of a CPU offer instead of a precision that they lack.
INSTEAD = {"int8": ("bf16", "f32")}


def best_peers(log):
    """(workload, batch, precision, round) -> (p50, peer)."""
    best = {}

    def offer(row, precision, name):
        key = (row["workload"], row["batch"], precision, row["round"])
        best[key] = min(best.get(key, (float("inf"), "")), (row["p50_us"], name))

    for row in log:
        if row["side"] == "peers" and "p50_us" in row:
            offer(row, row["precision"], row["peer"])
            for precision, others in INSTEAD.items():
                if row["precision"] in others:
                    offer(row, precision, f"{row['peer']} {row['precision']}")
    return best


def table(log):
    """The text of RESULTS.md."""
    versions = next((row["versions"] for row in log if "versions" in row), {})
    rows = [row for row in log if row["side"] == "ours" and "p50_us" in row]
    out = ["# Results", "", "Made by `benches/compare.py` (how: `README.md` beside this file).", ""]
    if rows:
        features = dict(rows[0].get("device_features", []))
        facts = ", ".join(f"{k} {v}" for k, v in features.items())
        out.append(f"Ours: neural-forecast {rows[0]['version']} on {rows[0]['device_name']} ({facts}).")
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    out.append(f"Peers: {peers or 'none'}.")
    missing = {"torch", "onnxruntime", "openvino"} - set(versions)
    if missing:
        out.append(f"**Missing peers: {', '.join(sorted(missing))}: no row below is a claim.**")
    rounds = 1 + max((row["round"] for row in log), default=-1)
    out.append(f"{rounds} alternating rounds, one call with a whole window from host memory to host memory.")
    out.append("Medians of p50 in µs; the ratio is the median over rounds of ours / best peer: below 1 is faster.")
    out.append("")
    out.append("| workload | batch | precision | ours | p99 | best peer | | ratio | GFLOP/s | % peak | error | output std |")
    out.append("|---|---|---|---|---|---|---|---|---|---|---|---|")
    best = best_peers(log)
    for key in dict.fromkeys((r["workload"], r["batch"], r["precision"]) for r in rows):
        mine = [r for r in rows if (r["workload"], r["batch"], r["precision"]) == key]
        pairs = [(r["p50_us"], *best[key + (r["round"],)]) for r in mine if key + (r["round"],) in best]
        median = lambda values: statistics.median(values) if values else float("nan")
        errors = [r["error_max"] for r in mine if r.get("error_max") is not None]
        names = sorted({name for _, _, name in pairs})
        peak = [r["peak_fraction"] * 100 for r in mine if r.get("peak_fraction")]
        cells = [
            key[0],
            key[1],
            key[2],
            f"{median([r['p50_us'] for r in mine]):,.1f}",
            f"{median([r['p99_us'] for r in mine]):,.1f}",
            f"{median([peer for _, peer, _ in pairs]):,.1f}" if pairs else "-",
            "/".join(names) or "-",
            f"{median([p50 / peer for p50, peer, _ in pairs]):.2f}" if pairs else "-",
            f"{median([r['gflops_per_second'] for r in mine]):,.0f}",
            f"{median(peak):.0f}" if peak else "-",
            f"{max(errors):.1e} ({mine[0]['error_windows']})" if errors else "-",
            f"{min(r['output_std'] for r in mine):.2f}",
        ]
        out.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peers", help="the script that runs the peers")
    p.add_argument("--binary", help="the command-line tool")
    p.add_argument("--python", default=sys.executable, help="interpreter that has the peers installed")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--compile", action="append", default=[], metavar="WORKLOAD",
                   help="with cuda: measure torch.compile on this workload too, once")
    p.add_argument("--seconds", type=float, default=2.0, help="how long each row of ours is timed")
    p.add_argument("--error-windows", type=int, default=8,
                   help="on a CPU: windows of each row compared with the reference (`verify` does 1,000)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int)
    p.add_argument("--workload", action="append", default=[])
    p.add_argument("--batch", type=int, action="append", default=[])
    p.add_argument("--precision", action="append", default=[])
    p.add_argument("--log", help="where every row goes, one JSON object a line")
    p.add_argument("--from-log", help="make the table of an earlier run")
    args = p.parse_args()
    args.precision = args.precision or ["f32"]
    args.workload = args.workload or WORKLOADS
    if args.from_log:
        with open(args.from_log) as file:
            log = lines(file.read())
    elif args.peers and args.binary:
        log = measure_gpu(args) if args.device == "cuda" else measure(args)
    else:
        p.error("--peers and --binary, or --from-log")
    print(gpu_table(log) if args.device == "cuda" else table(log))


if __name__ == "__main__":
    main()
