//! Which process the kernel ends when memory is short (man proc_pid_oom_score_adj(5)). Does not know which processes there are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// The value of a process that the kernel never ends for memory (OOM_SCORE_ADJ_MIN of linux/oom.h).
const SPARED: i16 = -1000;

/// Has the kernel spare the calling process when memory is short; its children inherit that. Returns the value of before; `None`, and
/// nothing is changed, where the process lacks the right (CAP_SYS_RESOURCE of the host), or /proc does not tell the children of a process
/// (CONFIG_PROC_CHILDREN), so that [`Proc::set_of_children`] could not give them another value.
pub fn spare() -> Option<i16> {
    fs::metadata("/proc/thread-self/children").ok()?;
    let file = OpenOptions::new().read(true).write(true).open("/proc/self/oom_score_adj").ok()?;
    let mut text = [0; 8];
    let len = file.read_at(&mut text, 0).ok()?;
    let usual = std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()?;
    file.write_at(SPARED.to_string().as_bytes(), 0).ok()?;
    Some(usual)
}

/// /proc, for a process whose root directory is to be another one.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// An error where it is not mounted, or there are too many descriptors.
    pub fn open() -> io::Result<Proc> {
        Ok(Proc(rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Gives all children of `parent`, a process with one thread, the value `usual`. One that ends meanwhile is passed over.
    ///
    /// An error where /proc does not tell the children, or there is no memory for it.
    pub fn set_of_children(&self, parent: Pid, usual: i16) -> io::Result<()> {
        self.set_of_children_of(parent, parent, usual)
    }

    fn set_of_children_of(&self, process: Pid, thread: Pid, usual: i16) -> io::Result<()> {
        let mut children = String::new();
        let path = format!("{}/task/{}/children", process.as_raw_pid(), thread.as_raw_pid());
        self.file(&path, OFlags::RDONLY)?.read_to_string(&mut children)?;
        for child in children.split_ascii_whitespace() {
            let set = self.file(&format!("{child}/oom_score_adj"), OFlags::WRONLY);
            match set.and_then(|mut file| file.write_all(usual.to_string().as_bytes())) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        Ok(rustix::fs::openat(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_the_right_stays_as_it_is() {
        let present = || fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse::<i16>().unwrap();
        let before = present();
        match spare() {
            Some(usual) => {
                assert_eq!((usual, present()), (before, SPARED));
                fs::write("/proc/self/oom_score_adj", usual.to_string()).unwrap();
            }
            None => println!("no CAP_SYS_RESOURCE"),
        }
        assert_eq!(present(), before);
    }

    #[test]
    fn children_get_the_value_that_is_given() {
        // More than before, which takes no right.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = || fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap();
        if let Err(e) = Proc::open().unwrap().set_of_children_of(rustix::process::getpid(), rustix::thread::gettid(), 555) {
            println!("skipped: {e}");
        } else {
            assert_eq!(of_child().trim(), "555");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
