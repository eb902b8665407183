//! Devices that a machine may lack: their tests are skipped and say so, or fail where the device
//! was required.

use std::fmt::Display;

/// Devices that must be there, separated by commas: `cuda,wgpu`.
const REQUIRE_VARIABLE: &str = "NF_REQUIRE";

/// The device, or `None` and a printed reason where this machine lacks it.
///
/// # Panics
/// If it is lacking and `NF_REQUIRE` names it.
pub fn device_or_skip<D>(name: &str, opened: Result<D, impl Display>) -> Option<D> {
    let required = std::env::var(REQUIRE_VARIABLE).unwrap_or_default();
    match opened {
        Ok(device) => Some(device),
        Err(error) if names(&required, name) => panic!("{REQUIRE_VARIABLE}={required}: {error}"),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn names(list: &str, name: &str) -> bool {
    list.split(',').any(|item| item.trim() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_whole_words() {
        assert!(names("cuda,wgpu", "wgpu") && names(" cuda ", "cuda"));
        assert!(!names("", "cuda") && !names("cudart", "cuda") && !names("wgpu", "cuda"));
    }

    #[test]
    fn a_device_that_is_there_is_given() {
        assert_eq!(device_or_skip("cpu", Ok::<_, String>(7)), Some(7));
        assert_eq!(device_or_skip::<u8>("no device has this name", Err("absent")), None);
    }
}
