//! What the system says about the caches of the first core.
//!
//! No guess: a level that the system does not describe is not there for the ceilings.

use std::path::Path;

/// Capacities in bytes that one core sees; `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// First level, data.
    pub l1: Option<usize>,
    /// Second level, of one core.
    pub l2: Option<usize>,
    /// Third level, shared by cores.
    pub l3: Option<usize>,
}

const CORE: &str = "/sys/devices/system/cpu/cpu0/cache";

impl Caches {
    /// As Linux describes them; all `None` on other systems.
    pub fn of_this_machine() -> Caches {
        Caches::read(Path::new(CORE))
    }

    fn read(folder: &Path) -> Caches {
        let mut found = Caches::default();
        for index in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let line = |name: &str| {
                let text = std::fs::read_to_string(index.path().join(name)).ok()?;
                Some(text.trim().to_owned())
            };
            if !matches!(line("type").as_deref(), Some("Data" | "Unified")) {
                continue;
            }
            let size = line("size").and_then(|size| bytes(&size));
            match line("level").as_deref() {
                Some("1") => found.l1 = size,
                Some("2") => found.l2 = size,
                Some("3") => found.l3 = size,
                _ => {}
            }
        }
        found
    }
}

/// `32K` or `32M` in bytes.
fn bytes(size: &str) -> Option<usize> {
    let digits = size.trim_end_matches(['K', 'M']);
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes("48K"), Some(48 << 10));
        assert_eq!(bytes("2M"), Some(2 << 20));
        assert_eq!(bytes("512"), Some(512));
        for wrong in ["", "K", "0K", "4G", "-1K", "99999999999999999999K"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_undescribed_machine_has_no_sizes() {
        assert_eq!(Caches::read(Path::new("/nonexistent")), Caches::default());
    }
}
