//! Who runs which steps of which layer when layers are a pipeline: a list of tasks for each worker,
//! made once, when a stack is compiled.
//!
//! A task is a chunk of steps of one layer. It needs the same chunk of the layer below and the
//! chunk before of its own; nothing else orders tasks, so workers need not own layers: three layers
//! on two workers are one and a half each. Knows costs as numbers only; they come from `cost`.

/// A chunk of steps of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub layer: usize,
    /// Number of the chunk.
    pub chunk: usize,
    /// What to wait for: that another worker has done so many of its tasks. First for the layer
    /// below, then for the chunk before.
    pub after: [Option<(usize, u32)>; 2],
}

/// Tasks of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipeline {
    /// Of each worker, in order.
    pub tasks: Vec<Vec<Task>>,
    /// Steps of a chunk.
    pub chunk: usize,
    /// When the last task ends, in the unit of the costs.
    pub cost: f64,
}

/// A task that has been given away.
#[derive(Clone, Copy)]
struct Done {
    worker: usize,
    /// How many tasks the worker has done by its end.
    count: u32,
    end: f64,
}

impl Pipeline {
    /// Gives `chunks` chunks of layers, of which one takes `costs[layer]`, to workers one after
    /// another: always the task that can begin first, where one of a layer that another worker ran
    /// last begins later by the hand-over, and so does one of a new layer for a worker that has its
    /// part of the layers. Of equal ones it is the last layer's, so that later layers do not fall
    /// behind.
    pub(super) fn new(
        costs: &[f64],
        chunks: usize,
        chunk: usize,
        workers: usize,
        hand_off: f64,
    ) -> Pipeline {
        let mut tasks = vec![Vec::new(); workers];
        let mut free = vec![0.0f64; workers];
        let mut done: Vec<Vec<Done>> = vec![Vec::with_capacity(chunks); costs.len()];
        for _ in 0..chunks * costs.len() {
            // When worker `w` could begin the next chunk of layer `l`.
            let begin = |w: usize, l: usize| -> Option<f64> {
                let next = done[l].len();
                let below = if l == 0 { None } else { Some(done[l - 1].get(next)?) };
                let needs = below.into_iter().chain(done[l].last());
                let there = |d: &Done| d.end + if d.worker == w { 0.0 } else { hand_off };
                (next < chunks).then(|| needs.map(there).fold(free[w], f64::max))
            };
            let owner = |l: usize| done[l].last().map(|d: &Done| d.worker);
            let owned = |w: usize| (0..costs.len()).filter(|&l| owner(l) == Some(w)).count();
            let strange = |w: usize, l: usize| match owner(l) {
                Some(owner) => owner != w,
                None => owned(w) >= costs.len().div_ceil(workers),
            };
            let options = (0..workers).flat_map(|w| (0..costs.len()).rev().map(move |l| (w, l)));
            let options = options.filter_map(|(w, l)| {
                let (start, strange) = (begin(w, l)?, strange(w, l));
                Some((start, start + if strange { hand_off } else { 0.0 }, strange, w, l))
            });
            // The first of equal ones, which is the later layer.
            let first = options.min_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)));
            let Some((start, _, _, worker, layer)) = first else { break };
            let chunk = done[layer].len();
            let below = layer.checked_sub(1).map(|l| done[l][chunk]);
            let elsewhere =
                |d: Option<Done>| d.filter(|d| d.worker != worker).map(|d| (d.worker, d.count));
            let after = [elsewhere(below), elsewhere(done[layer].last().copied())];
            tasks[worker].push(Task { layer, chunk, after });
            free[worker] = start + costs[layer];
            let count = tasks[worker].len() as u32;
            done[layer].push(Done { worker, count, end: free[worker] });
        }
        Pipeline { tasks, chunk, cost: free.into_iter().fold(0.0, f64::max) }
    }

    /// Most tasks of a worker.
    pub(super) fn longest(&self) -> u32 {
        self.tasks.iter().map(Vec::len).max().unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Walks the lists as workers do; all tasks once, each after what it needs.
    fn check(pipeline: &Pipeline, layers: usize, chunks: usize) {
        let mut next = vec![0; pipeline.tasks.len()];
        let mut done = vec![0; layers];
        loop {
            let mut moved = false;
            for w in 0..next.len() {
                let Some(task) = pipeline.tasks[w].get(next[w]) else { continue };
                if task.after.iter().flatten().any(|&(other, n)| next[other] < n as usize) {
                    continue;
                }
                assert_eq!(task.chunk, done[task.layer], "{task:?}");
                assert!(task.layer == 0 || done[task.layer - 1] > task.chunk, "{task:?}");
                done[task.layer] += 1;
                next[w] += 1;
                moved = true;
            }
            if !moved {
                break;
            }
        }
        assert_eq!(done, vec![chunks; layers], "{pipeline:?}");
    }

    #[test]
    fn tasks_come_after_what_they_need() {
        let mut random = Random::new("pipeline");
        for (layers, chunks, workers) in
            [(1, 1, 2), (2, 5, 2), (3, 12, 2), (4, 7, 2), (3, 9, 3), (5, 11, 3), (8, 6, 4)]
        {
            for hand_off in [0.0, 0.3, 5.0] {
                let costs: Vec<f64> =
                    random.floats(layers).iter().map(|c| 0.1 + f64::from(c.abs())).collect();
                check(&Pipeline::new(&costs, chunks, 4, workers, hand_off), layers, chunks);
            }
        }
    }

    #[test]
    fn workers_share_layers_evenly() {
        // One layer each.
        let two = Pipeline::new(&[1.0; 2], 20, 4, 2, 0.1);
        assert!(two.cost < 21.5, "{}", two.cost);
        // One and a half each; two and one would take 40.
        let three = Pipeline::new(&[1.0; 3], 20, 4, 2, 0.1);
        assert!(three.cost < 33.0, "{}", three.cost);
        let four = Pipeline::new(&[1.0; 4], 20, 4, 2, 0.1);
        assert!(four.cost < 43.0, "{}", four.cost);
        for pipeline in [two, three, four] {
            // A layer seldom moves to another worker, whose caches do not hold it.
            let moves = pipeline.tasks.iter().flatten().filter(|task| task.after[1].is_some());
            assert!(moves.count() <= 6, "{pipeline:?}");
        }
        // More workers than layers.
        let spare = Pipeline::new(&[1.0; 2], 20, 4, 3, 0.1);
        assert!(spare.cost < 21.5 && spare.tasks[2].is_empty(), "{spare:?}");
    }
}
