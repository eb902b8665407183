//! Sizes of this machine's caches, read once.
//!
//! Linux says them in `/sys`; elsewhere, and where a virtual machine hides them, a common size
//! stands in.

use std::path::Path;
use std::sync::OnceLock;

/// The second level of most server cores since 2017.
const L2_COMMON: usize = 1 << 20;

/// Bytes of a core's second-level cache.
pub(crate) fn l2_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    let system = Path::new("/sys/devices/system/cpu/cpu0/cache");
    *BYTES.get_or_init(|| level_bytes(system, 2).unwrap_or(L2_COMMON))
}

/// Bytes of the data (or unified) cache of a level; `None` where the system does not say.
fn level_bytes(directory: &Path, level: usize) -> Option<usize> {
    let read = |index: usize, name: &str| {
        std::fs::read_to_string(directory.join(format!("index{index}/{name}"))).ok()
    };
    (0..8).find_map(|index| {
        let same = read(index, "level")?.trim().parse() == Ok(level);
        let data = read(index, "type").is_some_and(|kind| kind.trim() != "Instruction");
        (same && data).then(|| size(read(index, "size")?.trim())).flatten()
    })
}

/// `48K`, `2M` or plain bytes; `None` for anything else, and for nothing.
fn size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_system_writes_them() {
        assert_eq!(size("32K"), Some(32 << 10));
        assert_eq!(size("2M"), Some(2 << 20));
        assert_eq!(size("1048576"), Some(1 << 20));
        for bad in ["", "K", "0K", "x", "-1K", "99999999999999999999K"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_level_is_found_among_the_others() {
        let directory = std::env::temp_dir().join(format!("caches-{}", std::process::id()));
        let caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K")];
        for (i, (level, kind, size)) in caches.iter().enumerate() {
            let at = directory.join(format!("index{i}"));
            std::fs::create_dir_all(&at).unwrap();
            for (name, text) in [("level", level), ("type", kind), ("size", size)] {
                std::fs::write(at.join(name), format!("{text}\n")).unwrap();
            }
        }
        assert_eq!(level_bytes(&directory, 1), Some(48 << 10));
        assert_eq!(level_bytes(&directory, 2), Some(2 << 20));
        assert_eq!(level_bytes(&directory, 3), None);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(level_bytes(&directory, 2), None);
    }
}
