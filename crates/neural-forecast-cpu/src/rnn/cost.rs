//! Which way of sharing a run among the workers ends first, from its sizes, the caches and what a
//! meeting costs.
//!
//! A pipeline's cost is when its last task ends, by the lists that `pipeline` makes of what one
//! task of each layer takes here.
//!
//! Cycles of a core, roughly: the model has to order the ways, not to predict them. Its rates of
//! reading were measured on Zen 4 at 3.5 GHz (2026-11-21); the costs of meetings and gates are
//! estimates. What differs most from machine to machine, the sizes of the caches, is read from the
//! processor.

use super::pipeline::Pipeline;
use super::{Direction, Rnn};
use crate::caches::Caches;
use crate::gemm::Packed;

/// Cycles to bring 64 bytes that are read again every step from L1, L2, L3 and memory into a
/// register: 52, 30, 25 and 4 bytes a cycle.
const READ: [f64; 4] = [1.2, 2.1, 2.6, 16.0];
/// Cycles from one worker's step or task to another's, with the lines that it then fetches.
const HAND_OFF: f64 = 600.0;
/// Cycles of a barrier.
const BARRIER: f64 = 1000.0;
/// Cycles of a gate of a vector of units, the state's own work included.
const GATE: f64 = 35.0;
/// Lengths of a pipeline's chunks that are tried, in steps.
const CHUNKS: [usize; 4] = [2, 4, 8, 16];

/// A stack with rows and steps, on a machine.
pub(super) struct Model<'a> {
    pub rnn: &'a Rnn,
    pub caches: Caches,
    pub rows: usize,
    pub steps: usize,
}

impl Model<'_> {
    /// The pipeline to prefer over splitting the units of each layer, if there is one.
    pub(super) fn pipeline(&self, workers: usize) -> Option<Pipeline> {
        let layers = self.rnn.layers.len();
        if self.rnn.directions() != 1 || layers < 2 || workers < 2 {
            return None;
        }
        let tried = CHUNKS.into_iter().filter(|&chunk| chunk < self.steps);
        let best = tried
            .map(|chunk| self.tasks(workers, chunk))
            .min_by(|a, b| a.cost.total_cmp(&b.cost))?;
        (best.cost < self.units(workers)).then_some(best)
    }

    /// All workers split the units of every layer, and hand over at every step.
    fn units(&self, workers: usize) -> f64 {
        let layer = |layer: &Direction| {
            let panels: usize = layer.heads.iter().map(|h| h.w_hh.panels()).sum();
            let share = panels.div_ceil(workers) as f64 / panels.max(1) as f64;
            let read = self.read(recurrent_bytes(layer) as f64 * share, workers);
            let step = share * self.step(layer, read) + HAND_OFF;
            let projection = if layer.projection.is_some() { HAND_OFF } else { 0.0 };
            self.steps as f64 * (step + projection)
                + share * self.inputs(layer, self.steps, workers)
                + 2.0 * BARRIER
        };
        self.rnn.layers.iter().flatten().map(layer).sum()
    }

    /// The pipeline whose tasks are chunks of so many steps.
    fn tasks(&self, workers: usize, chunk: usize) -> Pipeline {
        let layers = || self.rnn.layers.iter().flatten();
        // A worker's task before may have been another layer's, whose weights then lie where this
        // one's first step looks for its own: it reads as if all layers were walked in turn.
        let all: usize = layers().map(|l| recurrent_bytes(l) + input_bytes(l)).sum();
        let first = self.read(all as f64, workers);
        let cost = |layer: &Direction| {
            let again = self.read(recurrent_bytes(layer) as f64, workers);
            let steps = self.step(layer, first) + (chunk - 1) as f64 * self.step(layer, again);
            let inputs = self.inputs(layer, chunk, 1) * chunk as f64 / self.steps as f64;
            // Each task enters its products anew and may fetch what another worker wrote; when it
            // waits for that worker, `Pipeline::new` adds the hand-over itself.
            HAND_OFF + inputs + steps
        };
        let costs: Vec<f64> = layers().map(cost).collect();
        let chunks = self.steps.div_ceil(chunk);
        let mut pipeline = Pipeline::new(&costs, chunks, chunk, workers, HAND_OFF);
        pipeline.cost += 2.0 * BARRIER;
        pipeline
    }

    /// One step of a layer without its input products, where a vector of weights takes `read`.
    fn step(&self, layer: &Direction, read: f64) -> f64 {
        let gates = self.rnn.cell.gates() as f64;
        let units = self.rnn.hidden as f64 / self.rnn.isa.lanes() as f64;
        let update = self.rows as f64 * units * (gates + 1.0) * GATE;
        let heads = layer.heads.iter().map(|h| &h.w_hh);
        let product = |w: &Packed| product(w, self.rows, read);
        heads.chain(&layer.projection).map(product).sum::<f64>() + update
    }

    /// The input products of all steps, `chunk` steps at a time.
    fn inputs(&self, layer: &Direction, chunk: usize, workers: usize) -> f64 {
        let read = self.read(input_bytes(layer) as f64 / workers as f64, workers);
        let one = |w: &Packed| product(w, self.rows * chunk, read);
        let chunks = self.steps as f64 / chunk.max(1) as f64;
        chunks * layer.heads.iter().map(|h| one(&h.w_ih)).sum::<f64>()
    }

    /// Cycles of 64 bytes out of `set` bytes that are walked to and fro, so that of each level its
    /// size is found there. Other cores have their share of the last one.
    fn read(&self, set: f64, workers: usize) -> f64 {
        let Caches { l1, l2, l3 } = self.caches;
        let levels = [l1 as f64 / 2.0, l2 as f64 * 0.9, l3 as f64 / 2.0 / workers as f64];
        let (mut cycles, mut left) = (0.0, set);
        for (size, cost) in levels.into_iter().zip(READ) {
            // Large sets stream through the small levels: nothing of them is found again.
            let here = if size * 8.0 < set { 0.0 } else { left.min(size) };
            cycles += here * cost;
            left -= here;
        }
        (cycles + left * READ[3]) / set.max(1.0)
    }
}

fn recurrent_bytes(layer: &Direction) -> usize {
    let heads: usize = layer.heads.iter().map(|h| h.w_hh.bytes()).sum();
    heads + layer.projection.as_ref().map_or(0, Packed::bytes)
}

fn input_bytes(layer: &Direction) -> usize {
    layer.heads.iter().map(|h| h.w_ih.bytes()).sum()
}

/// Weights are read once for all rows; each row takes multiply-adds of every vector.
fn product(w: &Packed, rows: usize, read: f64) -> f64 {
    let adds = if w.widens() { 2.0 } else { 1.0 };
    w.bytes() as f64 / 64.0 * read.max(adds * rows as f64)
}
