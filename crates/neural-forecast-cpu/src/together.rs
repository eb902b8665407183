//! Where the workers of a team meet. Steps that work row by row follow each other without a
//! meeting: each worker takes the same rows through all of them, so it reads only what it wrote.
//!
//! Does not run steps; `device` walks the stretches that are found here.

use neural_forecast_runtime::ops::{LinearAxis, Op};
use neural_forecast_runtime::plan::{Dim, Entry, Step, ValueId};
use std::ops::Range;

/// Rows for each worker from which a step is taken by rows: as many as fill a tile of a product.
/// Fewer are shared by splitting the columns, for which the workers meet after every step.
const ROWS_EACH_MIN: usize = 8;

/// The value whose rows a step takes one by one, each row of its output being made from that row
/// alone (and from the same row of a residual).
pub(crate) fn by_rows(op: &Op) -> Option<ValueId> {
    match op {
        Op::Linear(linear) if linear.axis != LinearAxis::Time => Some(linear.x),
        Op::Norm(norm) => Some(norm.x),
        _ => None,
    }
}

/// Whether so many rows are split over the workers.
pub(crate) fn splits(rows: usize, workers: usize) -> bool {
    workers == 1 || rows >= workers * ROWS_EACH_MIN
}

/// Puts steps that work row by row directly behind the last one of the same rows before them, where
/// what they read is there already. Values are written once, so the result is the same.
pub(crate) fn order(entry: &mut Entry) {
    for i in 1..entry.steps.len() {
        let Some(rows) = leading(entry, &entry.steps[i]) else { continue };
        let reads = entry.steps[i].op.reads();
        let written = |step: &Step| step.outputs.iter().any(|output| reads.contains(output));
        // Steps before which it cannot go.
        let earliest = entry.steps[..i].iter().rposition(written).map_or(0, |j| j + 1);
        let follows = |j: &usize| *j > 0 && leading(entry, &entry.steps[j - 1]) == Some(rows);
        if let Some(to) = (earliest..=i).rev().find(follows)
            && to < i
        {
            entry.steps[to..=i].rotate_right(1);
        }
    }
}

/// All axes but the last of the rows of a step that works row by row.
fn leading<'a>(entry: &'a Entry, step: &Step) -> Option<&'a [Dim]> {
    entry.value(by_rows(&step.op)?).shape.split_last().map(|(_, rows)| rows)
}

/// The stretches of steps between two meetings, given how many rows each step splits over the
/// workers, if it does.
pub(crate) fn stretches(rows: &[Option<usize>]) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for (i, own) in rows.iter().enumerate() {
        match stretches.last_mut() {
            Some(last) if own.is_some() && rows[last.end - 1] == *own => last.end = i + 1,
            _ => stretches.push(i..i + 1),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use neural_forecast_runtime::device::LoadOptions;
    use neural_forecast_runtime::prepare;
    use neural_forecast_runtime::testing::cases;

    #[test]
    fn workers_meet_where_rows_change() {
        let rows = [Some(64), Some(64), None, Some(64), Some(64), Some(32), None, None];
        let expected = [0..2, 2..3, 3..5, 5..6, 6..7, 7..8];
        assert_eq!(stretches(&rows), expected);
        assert_eq!(stretches(&[]), Vec::<Range<usize>>::new());
    }

    #[test]
    fn ordering_keeps_what_is_read_before_what_reads_it() {
        let mut moved = 0;
        for case in cases() {
            let (plan, _) = prepare(&case.plan, &LoadOptions::default(), &|op| {
                !matches!(op, Op::EncoderStack(_) | Op::DecoderStack(_))
            })
            .expect("every case can be prepared");
            for entry in &plan.entries {
                let mut ordered = entry.clone();
                order(&mut ordered);
                let mut known: Vec<ValueId> = entry.inputs.iter().map(|i| i.value).collect();
                for step in &ordered.steps {
                    let unread = step.op.reads().into_iter().find(|read| !known.contains(read));
                    assert_eq!(unread, None, "{}: {}", case.name, step.label);
                    known.extend(&step.outputs);
                }
                let labels = |entry: &Entry| {
                    entry.steps.iter().map(|step| step.label.clone()).collect::<Vec<_>>()
                };
                let (mut before, mut after) = (labels(entry), labels(&ordered));
                moved += usize::from(before != after);
                before.sort();
                after.sort();
                assert_eq!(before, after, "{}", case.name);
            }
        }
        assert!(moved > 0, "no case has a step to move");
    }

    #[test]
    fn few_rows_are_not_split() {
        assert!(splits(1, 1) && splits(16, 2) && !splits(15, 2) && !splits(0, 2));
    }
}
