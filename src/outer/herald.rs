//! How a process that serves without a keeper says that it is ready and that it lives: to the outer process, or to the service manager
//! itself where it is the only process.

use parking_lot::Mutex;

use super::channel::{KeeperEnd, Said};
use super::notify::Notify;

/// Where it says so.
#[derive(Debug)]
pub enum Herald {
    /// The outer process.
    Outer(KeeperEnd),
    /// The service manager.
    Manager(Mutex<Notify>),
    /// Nobody asks.
    Nobody,
}

impl Herald {
    /// The socket listens, and the process is ready to serve. Waits until the manager has room for it.
    pub fn ready(&self) {
        self.say(&Said::Ready, "READY=1");
    }

    /// The process lives.
    pub fn alive(&self) {
        self.say(&Said::Alive, "WATCHDOG=1");
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        if let Herald::Manager(notify) = self {
            notify.lock().say("STOPPING=1".to_owned());
        }
    }

    fn say(&self, said: &Said, lines: &str) {
        match self {
            Herald::Outer(channel) => channel.say(said),
            Herald::Manager(notify) => {
                let mut notify = notify.lock();
                notify.say(lines.to_owned());
                if let Err(e) = notify.send_all() {
                    tracing::debug!("the service manager is not told {lines}: {e}");
                }
            }
            Herald::Nobody => {}
        }
    }
}
