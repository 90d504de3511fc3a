//! Thin system calls, one family a file, with safe signatures and no policy.

pub mod affinity;
pub mod attributes;
pub mod clock;
pub mod descriptor;
pub mod dirent;
pub mod event;
pub mod failpoint;
pub mod fanotify;
pub mod file_handle;
pub mod fsetid;
pub mod identity;
pub mod ioctl;
pub mod lock;
pub mod mode;
pub mod mount;
pub mod names;
pub mod open;
pub mod process;
pub mod signal;
pub mod space;
pub mod stat;
pub mod thread;
pub mod uring;
pub mod vectored;
pub mod working_dir;
pub mod xattr;
