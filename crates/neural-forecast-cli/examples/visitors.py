#!/usr/bin/env python3
"""Makes visitors.csv beside this script: invented visitors an hour of two shops, five weeks long.

A daily and a weekly rhythm, a slow trend and noise; the seed is fixed, so the file is too.
"""

import datetime
import math
import pathlib
import random

HOURS = 24 * 7 * 5
START = datetime.datetime(2026, 3, 2)


def visitors(rng, hour, level, evening):
    stamp = START + datetime.timedelta(hours=hour)
    rush = math.exp(-((stamp.hour - 12.5) / 2.8) ** 2) + evening * math.exp(
        -((stamp.hour - 18.5) / 2.0) ** 2
    )
    weekend = {5: 1.35, 6: 0.55}.get(stamp.weekday(), 1.0)
    mean = level * (0.06 + rush) * weekend * (1 + 0.00015 * hour)
    return stamp, max(0, round(rng.gauss(mean, 0.07 * mean + 1.5)))


def main():
    rng = random.Random(20260302)
    rows = ["unique_id,ds,y"]
    for name, level, evening in (("old-town", 180, 0.9), ("station", 90, 1.8)):
        for hour in range(HOURS):
            stamp, count = visitors(rng, hour, level, evening)
            rows.append(f"{name},{stamp:%Y-%m-%d %H:%M:%S},{count}")
    target = pathlib.Path(__file__).with_name("visitors.csv")
    target.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
