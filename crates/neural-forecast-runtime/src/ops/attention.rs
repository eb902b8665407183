//! `attention`: softmax attention of queries over keys, with everything the supported families add
//! to it.
//!
//! Does not project: queries, keys and values are column ranges of values that `linear` made, so a
//! fused QKV product needs no copy. No implementation may store a `T × T` matrix; residual scores
//! (RealFormer) are sums of products over depth and are given as such.

use super::elementwise::{softmax, softplus};
use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, StateId, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor, dot};

/// Columns `start .. start + width` of the last axis of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Columns {
    /// The value `[B, T, …]`.
    pub value: ValueId,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub width: usize,
}

/// Rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair `j` of a head turns by `position · theta^(−2j / head)`. The
    /// pairs are `(j, j + head/2)`.
    pub theta: f32,
    /// Whether a row's position is the number of visible rows before it, by the key mask, instead
    /// of its index: left-padded sequences then turn as if nothing stood before them. With a ring
    /// positions always count so.
    pub skip_masked: bool,
}

/// RMS normalisation of each head's queries and keys, after the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// `[head]`.
    pub query: WeightId,
    /// `[head]`.
    pub key: WeightId,
    /// Inside the root.
    pub eps: f32,
}

/// Added to the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionBias {
    /// T5's relative positions: `table[bucket(key − query), head]`.
    Relative {
        /// `[buckets, heads]`.
        table: WeightId,
        /// Distance from which on all share the last bucket.
        max_distance: usize,
        /// Whether the sign of the distance chooses half of the buckets.
        bidirectional: bool,
    },
    /// A mask or bias `[heads or 1, Tq, Tk]`, the same for all rows.
    Weight(WeightId),
}

/// A sliding window of keys and values in state slots.
///
/// Row `t` of a run has the position `p + (visible rows of the run before t)`, where `p` is the
/// stored position; it is kept at index `position mod capacity`, keys rotated and normalised. Rows
/// that the key mask hides are not appended and advance no position, so that a padded prefill gives
/// what an unpadded one gives. A query at position `a` sees the keys after `a − capacity` that were
/// there before the run or (causal: up to and including its own row) are in it, however the stream
/// was cut into runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyValueRing {
    /// `[capacity, heads · head]`.
    pub keys: StateId,
    /// `[capacity, heads · head]`.
    pub values: StateId,
    /// `[1]`, rows ever written; also the position of the first row of this run.
    pub position: StateId,
}

/// Parameters of `attention`. Writes `[B, Tq, heads · head_v]` (`[B, Tq, head_v]` with
/// `mean_heads`).
///
/// `scores[h, i, j] = Σ_p scale[p] · q_p[i, h]·k_p[j, h] + bias`, softmax over the keys `j` that
/// mask, causality and groups allow; a query that may see no key gets zeros.
///
/// Key `j` is at position `j` and query `i` at position `i + (Tk − Tq)`: queries are the last rows.
/// Causality, rotary positions and relative bias all go by these positions. Each query and key is
/// rotated, then normalised, then (queries) scaled by dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Queries `[B, Tq, heads · head]`; more than one where scores of earlier layers are added.
    pub queries: Vec<Columns>,
    /// Keys, as many as queries, `[B, Tk, heads · head]`.
    pub keys: Vec<Columns>,
    /// Values `[B, Tk, heads · head_v]`, or `[B, Tk, head_v]` with `mean_heads`.
    pub values: Columns,
    /// Number of heads.
    pub heads: usize,
    /// Scale of each pair of queries and keys.
    pub scales: Vec<f32>,
    /// Key `j` is visible to query `i` only if it is not at a later position.
    pub causal: bool,
    /// `[B, Tk]`: 1 where a key is visible.
    pub key_mask: Option<ValueId>,
    /// Added to the scores.
    pub bias: Option<AttentionBias>,
    /// Rotary positions; position 0 is the first row (of the stream, with a ring).
    pub rope: Option<Rope>,
    /// Normalised queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// `[head]`: query dimension `d` is multiplied by `1 / (ln 2 · √head) · softplus(w[d])`.
    pub per_dim_scale: Option<WeightId>,
    /// Attend over the batch instead of over time: row `a` sees row `b` at the same position, if
    /// their groups (`[B]`, `I32`) are equal. The key mask then belongs to `(b, position)`.
    pub groups: Option<ValueId>,
    /// One value head shared by all heads, and the mean over heads as the result.
    pub mean_heads: bool,
    /// Keys and values of earlier runs come first, and this run's are appended.
    pub ring: Option<KeyValueRing>,
}

impl Columns {
    /// All `width` columns of a value.
    pub fn all(value: ValueId, width: usize) -> Self {
        Columns { value, start: 0, width }
    }
}

impl Attention {
    /// Plain attention of one query, key and value.
    pub fn new(query: Columns, key: Columns, values: Columns, heads: usize, scale: f32) -> Self {
        Attention {
            queries: vec![query],
            keys: vec![key],
            values,
            heads,
            scales: vec![scale],
            causal: false,
            key_mask: None,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
            groups: None,
            mean_heads: false,
            ring: None,
        }
    }

    /// Width of one head of queries and keys.
    pub fn head(&self) -> usize {
        self.queries.first().map_or(0, |q| q.width / self.heads.max(1))
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let n = self.queries.len();
        if n == 0 || self.keys.len() != n || self.scales.len() != n || self.heads == 0 {
            return Err(c.error(format!(
                "{n} queries, {} keys, {} scales and {} heads do not fit",
                self.keys.len(),
                self.scales.len(),
                self.heads
            )));
        }
        let width = self.queries[0].width;
        let (rows, queries) = self.columns(c, "queries", &self.queries[0])?;
        let (_, keys) = self.columns(c, "keys", &self.keys[0])?;
        for (what, columns, time) in self
            .queries
            .iter()
            .map(|q| ("queries", q, queries))
            .chain(self.keys.iter().map(|k| ("keys", k, keys)))
        {
            if self.columns(c, what, columns)? != (rows, time) || columns.width != width {
                return Err(c.error(format!("`{what}` differ in shape over depth")));
            }
        }
        if !width.is_multiple_of(self.heads) {
            return Err(c.error(format!("{width} columns do not divide into {} heads", self.heads)));
        }
        if self.columns(c, "values", &self.values)? != (rows, keys) {
            return Err(c.error("`values` and `keys` differ in batch or time"));
        }
        if !self.mean_heads && !self.values.width.is_multiple_of(self.heads) {
            return Err(c.error("value columns do not divide into heads"));
        }
        self.check_options(c, rows, queries, keys)?;
        let out = vec![rows, queries, self.values.width.into()];
        Ok(vec![(DType::F32, out)])
    }

    fn check_options(
        &self,
        c: &ShapeContext<'_>,
        rows: Dim,
        queries: Dim,
        keys: Dim,
    ) -> Result<(), PlanError> {
        let head = self.head();
        if let Some(mask) = self.key_mask {
            c.expect_value("key_mask", mask, &[rows, keys], "[B, Tk]")?;
        }
        match self.bias {
            Some(AttentionBias::Relative { table, bidirectional, .. }) => {
                let buckets = *c.weight(table).first().unwrap_or(&0);
                if buckets == 0 || (bidirectional && !buckets.is_multiple_of(2)) {
                    return Err(c.error(format!("{buckets} buckets of relative positions")));
                }
                c.expect_weight("bias", table, &[buckets, self.heads], "[buckets, heads]")?;
            }
            Some(AttentionBias::Weight(bias)) => {
                let (q, k) = (c.fixed("queries", Some(&queries))?, c.fixed("keys", Some(&keys))?);
                let heads = *c.weight(bias).first().unwrap_or(&0);
                if heads != 1 && heads != self.heads {
                    return Err(c.error(format!("the bias has {heads} heads")));
                }
                c.expect_weight("bias", bias, &[heads, q, k], "[heads, Tq, Tk]")?;
            }
            None => {}
        }
        if self.rope.is_some() && !head.is_multiple_of(2) {
            return Err(c.error(format!("rotary positions need an even head, found {head}")));
        }
        if let Some(norm) = &self.qk_norm {
            c.expect_weight("qk_norm.query", norm.query, &[head], "[head]")?;
            c.expect_weight("qk_norm.key", norm.key, &[head], "[head]")?;
        }
        if let Some(scale) = self.per_dim_scale {
            c.expect_weight("per_dim_scale", scale, &[head], "[head]")?;
        }
        if let Some(groups) = self.groups {
            c.expect_value("groups", groups, &[rows], "[B]")?;
            let plain = !self.causal && self.bias.is_none() && self.rope.is_none();
            if !plain || self.ring.is_some() || queries != keys {
                return Err(c.error("attention over the batch has no time order, bias or ring"));
            }
        }
        if let Some(ring) = &self.ring {
            let capacity = *c.state(ring.keys).first().unwrap_or(&0);
            let fits = c.state(ring.keys) == [capacity, self.keys[0].width]
                && c.state(ring.values) == [capacity, self.values.width]
                && c.state(ring.position) == [1]
                && queries.fixed().is_some_and(|t| t <= capacity)
                && queries == keys
                && self.keys.len() == 1;
            if !fits {
                return Err(c.error("a ring needs slots [capacity, width], [1] and one key set"));
            }
        }
        Ok(())
    }

    fn columns(
        &self,
        c: &ShapeContext<'_>,
        what: &str,
        columns: &Columns,
    ) -> Result<(Dim, Dim), PlanError> {
        let shape = c.expect_rank(what, columns.value, 3, "[B, T, columns]")?;
        let width = c.fixed(what, shape.last())?;
        let end = columns.start.saturating_add(columns.width);
        if end > width || columns.width == 0 {
            let start = columns.start;
            return Err(c.error(format!("`{what}` take columns {start}..{end} of {width}")));
        }
        Ok((shape[0], shape[1]))
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        for columns in self.queries.iter_mut().chain(&mut self.keys) {
            visit(&mut columns.value);
        }
        visit(&mut self.values.value);
        self.key_mask.iter_mut().for_each(&mut *visit);
        self.groups.iter_mut().for_each(visit);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        match &mut self.bias {
            Some(AttentionBias::Relative { table, .. }) => visit(table),
            Some(AttentionBias::Weight(bias)) => visit(bias),
            None => {}
        }
        if let Some(norm) = &mut self.qk_norm {
            visit(&mut norm.query);
            visit(&mut norm.key);
        }
        self.per_dim_scale.iter_mut().for_each(visit);
    }
}

/// Which row of a T5 bias table serves a distance, as `transformers` computes it (the logarithm in
/// single precision, because that decides the boundaries). `relative` is key − query.
pub fn relative_bucket(
    relative: isize,
    buckets: usize,
    max_distance: usize,
    bidirectional: bool,
) -> usize {
    let (sided, first) = match bidirectional {
        true if relative > 0 => (buckets / 2, buckets / 2),
        true => (buckets / 2, 0),
        false => (buckets, 0),
    };
    let distance =
        if bidirectional { relative.unsigned_abs() } else { (-relative).max(0) as usize };
    let exact = sided / 2;
    if distance < exact || sided == 0 {
        return first + distance.min(sided.saturating_sub(1));
    }
    let steps = (distance as f32 / exact as f32).ln();
    let range = (max_distance as f64 / exact as f64).ln() as f32;
    let bucket = exact.saturating_add((steps / range * (sided - exact) as f32) as usize);
    first + bucket.min(sided - 1)
}

/// One key with its value, as a query sees them.
struct Seen {
    /// Keys of each depth, `[heads · head]`.
    keys: Vec<Vec<f64>>,
    value: Vec<f64>,
    position: isize,
}

impl Attention {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        if self.ring.is_some() {
            return vec![self.over_ring(c)];
        }
        if self.groups.is_some() {
            return vec![self.over_batch(c)];
        }
        let shape = &c.value(self.queries[0].value).shape;
        let (rows, queries) = (shape[0], shape[1]);
        let keys = c.value(self.keys[0].value).shape[1];
        let shift = keys as isize - queries as isize;
        let mut y = Vec::new();
        for b in 0..rows {
            let seen: Vec<Seen> = (0..keys).map(|j| self.key(c, b, j, j as isize)).collect();
            for i in 0..queries {
                let position = i as isize + shift;
                let query = self.query(c, b, i, position);
                let visible = (0..keys).filter(|&j| {
                    let masked = self.key_mask.is_some_and(|m| c.value(m).at(&[b, j]) == 0.0);
                    !masked && (!self.causal || j as isize <= position)
                });
                let visible: Vec<(&Seen, Option<(usize, usize)>)> =
                    visible.map(|j| (&seen[j], Some((i, j)))).collect();
                y.extend(self.attend(c, &query, position, &visible));
            }
        }
        vec![Tensor::new([rows, queries, self.values.width], y)]
    }

    /// Row `a` attends to the rows of its group at the same position.
    fn over_batch(&self, c: &ReferenceContext<'_>) -> Tensor {
        let shape = &c.value(self.queries[0].value).shape;
        let (rows, time) = (shape[0], shape[1]);
        let group = |row: usize| self.groups.map(|groups| c.value(groups).data[row]);
        let mut y = Vec::new();
        for a in 0..rows {
            for t in 0..time {
                let visible = (0..rows).filter(|&b| {
                    let masked = self.key_mask.is_some_and(|m| c.value(m).at(&[b, t]) == 0.0);
                    group(a) == group(b) && !masked
                });
                let seen: Vec<Seen> = visible.map(|b| self.key(c, b, t, 0)).collect();
                let visible: Vec<_> = seen.iter().map(|key| (key, None)).collect();
                y.extend(self.attend(c, &self.query(c, a, t, 0), 0, &visible));
            }
        }
        Tensor::new([rows, time, self.values.width], y)
    }

    /// The rows of this run after those of the ring, which they are then appended to.
    fn over_ring(&self, c: &mut ReferenceContext<'_>) -> Tensor {
        let ring = self.ring.expect("only attention with a ring comes here");
        let shape = &c.value(self.queries[0].value).shape;
        let (rows, time) = (shape[0], shape[1]);
        let mut keys = c.state(ring.keys).clone();
        let mut values = c.state(ring.values).clone();
        let mut positions = c.state(ring.position).clone();
        let capacity = keys.shape[1] as isize;
        let mut y = Vec::new();
        for b in 0..rows {
            let written = positions.at(&[b, 0]) as isize;
            let slot = |position: isize| position.rem_euclid(capacity) as usize;
            let mut seen: Vec<Seen> = ((written - capacity).max(0)..written)
                .map(|position| Seen {
                    keys: vec![row_of(&keys, b, slot(position)).to_vec()],
                    value: row_of(&values, b, slot(position)).to_vec(),
                    position,
                })
                .collect();
            let old = seen.len();
            let mut next = written;
            let mut queries = Vec::new();
            for t in 0..time {
                queries.push((self.query(c, b, t, next), next, seen.len()));
                if self.key_mask.is_none_or(|mask| c.value(mask).at(&[b, t]) != 0.0) {
                    seen.push(self.key(c, b, t, next));
                    next += 1;
                    queries[t].2 = seen.len();
                }
            }
            for (query, position, until) in queries {
                let until = if self.causal { until } else { seen.len() };
                let window = seen[..until].iter();
                let window = window.filter(|key| key.position > position - capacity);
                let visible: Vec<_> = window.map(|key| (key, None)).collect();
                y.extend(self.attend(c, &query, position, &visible));
            }
            for key in &seen[old..] {
                row_of_mut(&mut keys, b, slot(key.position)).copy_from_slice(&key.keys[0]);
                row_of_mut(&mut values, b, slot(key.position)).copy_from_slice(&key.value);
            }
            *positions.at_mut(&[b, 0]) = next as f64;
        }
        c.set_state(ring.keys, keys);
        c.set_state(ring.values, values);
        c.set_state(ring.position, positions);
        Tensor::new([rows, time, self.values.width], y)
    }

    /// The result row of one query over the keys it sees; `cell` is (query, key) of a bias matrix.
    fn attend(
        &self,
        c: &ReferenceContext<'_>,
        query: &[Vec<f64>],
        position: isize,
        visible: &[(&Seen, Option<(usize, usize)>)],
    ) -> Vec<f64> {
        let mut y = vec![0.0; self.values.width];
        let head = self.head();
        for h in 0..self.heads {
            if visible.is_empty() {
                break;
            }
            let mut scores: Vec<f64> = visible
                .iter()
                .map(|(key, cell)| {
                    let products = query.iter().zip(&key.keys).zip(&self.scales);
                    let products = products.map(|((q, k), &scale)| {
                        let range = h * head..(h + 1) * head;
                        f64::from(scale) * dot(&q[range.clone()], &k[range])
                    });
                    products.sum::<f64>() + self.bias(c, h, key.position - position, *cell)
                })
                .collect();
            softmax(&mut scores);
            let width = if self.mean_heads { y.len() } else { y.len() / self.heads };
            for (weight, (key, _)) in scores.iter().zip(visible) {
                for d in 0..width {
                    if self.mean_heads {
                        y[d] += weight * key.value[d] / self.heads as f64;
                    } else {
                        y[h * width + d] += weight * key.value[h * width + d];
                    }
                }
            }
        }
        y
    }

    fn bias(
        &self,
        c: &ReferenceContext<'_>,
        head: usize,
        relative: isize,
        cell: Option<(usize, usize)>,
    ) -> f64 {
        match (self.bias, cell) {
            (Some(AttentionBias::Relative { table, max_distance, bidirectional }), _) => {
                let table = c.weight(table);
                let bucket = relative_bucket(relative, table.shape[0], max_distance, bidirectional);
                table.at(&[bucket, head])
            }
            (Some(AttentionBias::Weight(bias)), Some((i, j))) => {
                let bias = c.weight(bias);
                bias.at(&[head.min(bias.shape[0] - 1), i, j])
            }
            _ => 0.0,
        }
    }

    /// The queries of all depths at a row and time, rotated, normalised and scaled.
    fn query(&self, c: &ReferenceContext<'_>, b: usize, t: usize, at: isize) -> Vec<Vec<f64>> {
        let norm = self.qk_norm.map(|norm| (norm.query, norm.eps));
        let scale = self.per_dim_scale.map(|weight| &c.weight(weight).data);
        let head = self.head();
        let columns = self.queries.iter();
        let queries = columns.map(|columns| {
            let mut query = self.prepared(c, columns, b, t, at, norm);
            if let Some(scale) = scale {
                for (d, q) in query.iter_mut().enumerate() {
                    *q *=
                        std::f64::consts::LOG2_E / (head as f64).sqrt() * softplus(scale[d % head]);
                }
            }
            query
        });
        queries.collect()
    }

    fn key(&self, c: &ReferenceContext<'_>, b: usize, t: usize, position: isize) -> Seen {
        let norm = self.qk_norm.map(|norm| (norm.key, norm.eps));
        let columns = self.keys.iter();
        let keys = columns.map(|columns| self.prepared(c, columns, b, t, position, norm)).collect();
        Seen { keys, value: self.values.row(c, b, t).to_vec(), position }
    }

    /// Columns at a row and time, rotated to a position, then normalised.
    fn prepared(
        &self,
        c: &ReferenceContext<'_>,
        columns: &Columns,
        b: usize,
        t: usize,
        position: isize,
        norm: Option<(WeightId, f32)>,
    ) -> Vec<f64> {
        let mut row = columns.row(c, b, t).to_vec();
        let head = self.head();
        for head_row in row.chunks_exact_mut(head) {
            if let Some(rope) = self.rope {
                rope.rotate(head_row, self.turn(c, rope, b, position));
            }
            if let Some((weight, eps)) = norm {
                let square = head_row.iter().map(|x| x * x).sum::<f64>() / head as f64;
                for (x, w) in head_row.iter_mut().zip(&c.weight(weight).data) {
                    *x = *x / (square + f64::from(eps)).sqrt() * w;
                }
            }
        }
        row
    }
}

impl Attention {
    /// The position by which the row at index `position` turns.
    fn turn(&self, c: &ReferenceContext<'_>, rope: Rope, b: usize, position: isize) -> isize {
        match self.key_mask {
            Some(mask) if rope.skip_masked && self.ring.is_none() => {
                let before = 0..position.max(0) as usize;
                before.filter(|&j| c.value(mask).at(&[b, j]) != 0.0).count() as isize
            }
            _ => position,
        }
    }
}

impl Rope {
    /// Turns the pairs `(j, j + head/2)` of one head.
    fn rotate(&self, head: &mut [f64], position: isize) {
        let half = head.len() / 2;
        for j in 0..half {
            let frequency = f64::from(self.theta).powf(-2.0 * j as f64 / head.len() as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[j], head[j + half]);
            head[j] = a * cos - b * sin;
            head[j + half] = b * cos + a * sin;
        }
    }
}

impl Columns {
    fn row<'a>(&self, c: &'a ReferenceContext<'_>, b: usize, t: usize) -> &'a [f64] {
        &row_of(c.value(self.value), b, t)[self.start..self.start + self.width]
    }
}

/// The vector at `[b, t]` of a tensor of rank 3.
fn row_of(x: &Tensor, b: usize, t: usize) -> &[f64] {
    let start = (b * x.shape[1] + t) * x.shape[2];
    &x.data[start..start + x.shape[2]]
}

/// The vector at `[b, t]` of a tensor of rank 3, to write.
fn row_of_mut(x: &mut Tensor, b: usize, t: usize) -> &mut [f64] {
    let (start, width) = ((b * x.shape[1] + t) * x.shape[2], x.shape[2]);
    &mut x.data[start..start + width]
}
