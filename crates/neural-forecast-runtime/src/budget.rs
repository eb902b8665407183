//! What the memory limit of a resident plan leaves. Allocates nothing itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{DeviceError, DeviceErrorKind};

/// Bytes in use of at most so many.
#[derive(Debug)]
pub struct Budget {
    most: u64,
    used: Mutex<u64>,
}

impl Budget {
    /// A budget without a limit where `most` is `None`.
    pub fn new(most: Option<u64>) -> Budget {
        Budget { most: most.unwrap_or(u64::MAX), used: Mutex::new(0) }
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// `OutOfMemory` with the owner and the numbers where they are too many; then none are taken.
    pub fn reserve(&self, owner: &str, bytes: u64) -> Result<(), DeviceError> {
        let mut used = self.used();
        let total = used.saturating_add(bytes);
        if total > self.most {
            let message =
                format!("{owner} need {bytes} bytes beside {}, limit {}", *used, self.most);
            return Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
        }
        *used = total;
        Ok(())
    }

    /// Gives bytes back.
    pub fn release(&self, bytes: u64) {
        let mut used = self.used();
        *used = used.saturating_sub(bytes);
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        // The sum is whole whoever panicked.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_names_owner_bytes_and_limit() {
        let budget = Budget::new(Some(100));
        budget.reserve("weights", 60).expect("it fits");
        let error = budget.reserve("the arena", 41).expect_err("it does not fit");
        assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);
        let message = error.to_string();
        for part in ["the arena", "41", "60", "100"] {
            assert!(message.contains(part), "{message}");
        }
        budget.release(60);
        budget.reserve("the arena", 100).expect("it fits now");
    }
}
