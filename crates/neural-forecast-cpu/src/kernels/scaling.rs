//! Scaling by the statistics of a window, in a run: fitted, applied, carried and undone.

use super::{Context, Loaded, Room, shared};
use crate::series;
use crate::team::Worker;
use neural_forecast_runtime::ops::{self, Masked, Statistics};

impl Loaded {
    pub(super) unsafe fn normalize(
        &self,
        op: &ops::Normalize,
        affine: Option<(&[f32], &[f32])>,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let (x, y, statistics) = (c.at(op.x), c.at(self.out(0)), c.at(self.out(1)));
        let &[rows, time, channels] = c.shape(op.x) else { return };
        let prefix = op.statistics == Statistics::Prefix;
        let mask = op.mask.map(|mask| (c.at(mask), c.shape(mask)));
        let Some(lists) = &room.lists else { return };
        // SAFETY: all values have the shapes of the op's rule; workers take different rows (and
        // channels, where statistics are of a channel).
        unsafe {
            let (seen, sorted) = lists.get(worker.index());
            let observed = |b: usize, t: usize, k: usize| match mask {
                None => true,
                Some((mask, &[_, _, width])) => {
                    *mask.add((b * time + t) * width + k.min(width - 1)) != 0.0
                }
                Some((mask, _)) => *mask.add(b * time + t) != 0.0,
            };
            let carried = |b: usize, k: usize, width: usize| {
                op.running.map(|state| {
                    let at = c.state_rows(state).row(b);
                    let get = |i: usize| f64::from(*at.add(i * width + k));
                    series::Moments { count: get(0), mean: get(1), squares: get(2) }
                })
            };
            let carry = |b: usize, k: usize, width: usize, m: series::Moments| {
                if op.running.is_some() {
                    let at = shared(&room.pending[0]).add(b * 3 * width + k);
                    for (i, part) in [m.count, m.mean, m.squares].into_iter().enumerate() {
                        *at.add(i * width) = part as f32;
                    }
                }
            };
            let write = |b: usize, t: usize, k: usize, pair: (f64, f64)| {
                let at = (b * time + t) * channels + k;
                *y.add(at) = if op.masked == Masked::Zero && !observed(b, t, k) {
                    0.0
                } else {
                    let scaled = series::scale(&op.scaler, f64::from(*x.add(at)), pair);
                    let (w, shift) =
                        affine.map_or((1.0, 0.0), |(w, b)| (f64::from(w[k]), f64::from(b[k])));
                    (scaled * w + shift) as f32
                };
            };
            let value =
                |b: usize, t: usize, k: usize| f64::from(*x.add((b * time + t) * channels + k));
            if prefix {
                for b in worker.share(rows) {
                    seen.clear();
                    let before = carried(b, 0, 1);
                    let mut own = series::Moments::default();
                    for t in 0..time {
                        let old = seen.len();
                        seen.extend(
                            (0..channels).filter(|&k| observed(b, t, k)).map(|k| value(b, t, k)),
                        );
                        own = own.merge(series::Moments::of(&seen[old..]));
                        let all = before.map_or(own, |before| before.merge(own));
                        let pair = series::fit(&op.scaler, seen, all, sorted);
                        let at = statistics.add((b * time + t) * 2);
                        (*at, *at.add(1)) = (pair.0 as f32, pair.1 as f32);
                        for k in 0..channels {
                            write(b, t, k, pair);
                        }
                        carry(b, 0, 1, all);
                    }
                }
                return;
            }
            let until = match op.statistics {
                Statistics::First(n) => n.min(time),
                _ => time,
            };
            for item in worker.share(rows * channels) {
                let (b, k) = (item / channels, item % channels);
                seen.clear();
                seen.extend((0..until).filter(|&t| observed(b, t, k)).map(|t| value(b, t, k)));
                let own = series::Moments::of(seen);
                let all = carried(b, k, channels).map_or(own, |before| before.merge(own));
                carry(b, k, channels, all);
                let pair = series::fit(&op.scaler, seen, all, sorted);
                let at = statistics.add(b * 2 * channels + k);
                (*at, *at.add(channels)) = (pair.0 as f32, pair.1 as f32);
                for t in 0..time {
                    write(b, t, k, pair);
                }
            }
        }
    }

    pub(super) unsafe fn denormalize(
        &self,
        op: &ops::Denormalize,
        affine: Option<(&[f32], &[f32])>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let (x, y, statistics) = (c.at(op.x), c.at(self.out(0)), c.at(op.statistics));
        let &[rows, steps, width] = c.shape(op.x) else { return };
        let &[_, patches, last] = c.shape(op.statistics) else { return };
        let channels = if op.prefix { 1 } else { last };
        let outputs = (width / channels.max(1)).max(1);
        let eps = op.affine.map_or(0.0, |affine| f64::from(affine.eps));
        for row in worker.share(rows * steps) {
            let b = row / steps;
            for d in 0..width {
                let k = op.channel.unwrap_or(d / outputs);
                // SAFETY: the shape rule made statistics fit `x`.
                unsafe {
                    let (at, step) = match op.prefix {
                        true => (statistics.add((b * patches + patches - 1) * 2), 1),
                        false => (statistics.add(b * 2 * channels + k), channels),
                    };
                    let pair = (f64::from(*at), f64::from(*at.add(step)));
                    let mut value = f64::from(*x.add(row * width + d));
                    if let Some((w, shift)) = affine {
                        value = (value - f64::from(shift[k])) / (f64::from(w[k]) + eps);
                    }
                    *y.add(row * width + d) = series::unscale(&op.scaler, value, pair) as f32;
                }
            }
        }
    }
}
