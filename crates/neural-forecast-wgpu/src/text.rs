//! Repetition in WGSL text, which WGSL itself lacks: matrices that a subgroup multiplies together
//! and weights that stay in registers must be variables of their own, and loops are not unrolled
//! through the checks that wgpu puts into them.
//!
//! ```text
//! //# for i in ROWS
//! var sum_$i = 0.0;
//! //# end
//! ```
//! repeats the lines between for i from 0 up to the constant `ROWS`, or a number in its place.
//! Blocks nest.

/// The text with all blocks written out.
///
/// # Panics
/// If a block is not ended, or not begun: a bug of the kernel.
pub(crate) fn expand(text: &str, value: &dyn Fn(&str) -> u32) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut expanded = String::with_capacity(text.len());
    append(&lines, value, &mut expanded);
    expanded
}

fn append(lines: &[&str], value: &dyn Fn(&str) -> u32, into: &mut String) {
    let mut rest = lines;
    while let Some((line, after)) = rest.split_first() {
        rest = after;
        let Some((name, count)) = block(line) else {
            assert!(!is_end(line), "a kernel ends a block that it has not begun");
            into.push_str(line);
            into.push('\n');
            continue;
        };
        let mut depth = 1;
        let length = after.iter().position(|line| {
            depth += usize::from(block(line).is_some());
            depth -= usize::from(is_end(line));
            depth == 0
        });
        let length = length.expect("a kernel ends the blocks that it begins");
        let count = count.parse().unwrap_or_else(|_| value(count));
        let place = format!("${name}");
        for i in 0..count {
            let number = i.to_string();
            let body: Vec<String> =
                after[..length].iter().map(|line| line.replace(&place, &number)).collect();
            append(&body.iter().map(String::as_str).collect::<Vec<_>>(), value, into);
        }
        rest = &after[length + 1..];
    }
}

/// The name and the count of a line that begins a block.
fn block(line: &str) -> Option<(&str, &str)> {
    line.trim().strip_prefix("//# for ")?.split_once(" in ")
}

fn is_end(line: &str) -> bool {
    line.trim() == "//# end"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_written_out_and_nest() {
        let text = "a\n//# for i in N\nx$i\n  //# for j in 2\n  y$i_$j\n  //# end\n//# end\nb\n";
        let value = |name: &str| u32::from(name == "N") * 2;
        assert_eq!(expand(text, &value), "a\nx0\n  y0_0\n  y0_1\nx1\n  y1_0\n  y1_1\nb\n");
        let none = |_: &str| 0;
        assert_eq!(expand(text, &none), "a\nb\n");
    }

    #[test]
    #[should_panic(expected = "ends the blocks")]
    fn a_block_without_an_end_is_a_bug() {
        expand("//# for i in 2\nx\n", &|_| 0);
    }
}
