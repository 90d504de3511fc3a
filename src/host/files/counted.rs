//! A descriptor that is counted in the budget as long as it is open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::state::{Budget, Reserved};

/// A counted descriptor.
#[derive(Debug)]
pub struct Counted {
    // Closed before its place is given back.
    file: OwnedFd,
    _place: Place,
}

impl Counted {
    /// `file`, for which `reserved` is the place, in `budget`.
    pub(super) fn new(file: OwnedFd, reserved: Reserved<'_>, budget: &Arc<Budget>) -> Counted {
        reserved.keep();
        Counted { file, _place: Place(Arc::clone(budget)) }
    }
}

impl AsFd for Counted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One place in the budget.
#[derive(Debug)]
struct Place(Arc<Budget>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give(1);
    }
}
