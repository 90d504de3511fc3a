//! The opcodes of FUSE 7.45, with the protocol's names.

macro_rules! opcodes {
    ($($name:ident = $number:literal $spelling:literal),* $(,)?) => {
        /// A FUSE opcode (`enum fuse_opcode`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Opcode { $($name = $number),* }

        impl Opcode {
            /// Every opcode, in ascending order.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name),*];

            /// The protocol's names without their prefix, by number; "" for a number that is not an opcode.
            pub const NAMES: [&'static str; Opcode::COUNT] = {
                let mut names = [""; Opcode::COUNT];
                $(names[$number] = $spelling;)*
                names
            };

            /// The opcode with that number; `None` where there is none.
            pub fn from_number(number: u32) -> Option<Opcode> {
                match number { $($number => Some(Opcode::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1 "LOOKUP",
    Forget = 2 "FORGET",
    Getattr = 3 "GETATTR",
    Setattr = 4 "SETATTR",
    Readlink = 5 "READLINK",
    Symlink = 6 "SYMLINK",
    Mknod = 8 "MKNOD",
    Mkdir = 9 "MKDIR",
    Unlink = 10 "UNLINK",
    Rmdir = 11 "RMDIR",
    Rename = 12 "RENAME",
    Link = 13 "LINK",
    Open = 14 "OPEN",
    Read = 15 "READ",
    Write = 16 "WRITE",
    Statfs = 17 "STATFS",
    Release = 18 "RELEASE",
    Fsync = 20 "FSYNC",
    Setxattr = 21 "SETXATTR",
    Getxattr = 22 "GETXATTR",
    Listxattr = 23 "LISTXATTR",
    Removexattr = 24 "REMOVEXATTR",
    Flush = 25 "FLUSH",
    Init = 26 "INIT",
    Opendir = 27 "OPENDIR",
    Readdir = 28 "READDIR",
    Releasedir = 29 "RELEASEDIR",
    Fsyncdir = 30 "FSYNCDIR",
    Getlk = 31 "GETLK",
    Setlk = 32 "SETLK",
    Setlkw = 33 "SETLKW",
    Access = 34 "ACCESS",
    Create = 35 "CREATE",
    Interrupt = 36 "INTERRUPT",
    Bmap = 37 "BMAP",
    Destroy = 38 "DESTROY",
    Ioctl = 39 "IOCTL",
    Poll = 40 "POLL",
    NotifyReply = 41 "NOTIFY_REPLY",
    BatchForget = 42 "BATCH_FORGET",
    Fallocate = 43 "FALLOCATE",
    Readdirplus = 44 "READDIRPLUS",
    Rename2 = 45 "RENAME2",
    Lseek = 46 "LSEEK",
    CopyFileRange = 47 "COPY_FILE_RANGE",
    Setupmapping = 48 "SETUPMAPPING",
    Removemapping = 49 "REMOVEMAPPING",
    Syncfs = 50 "SYNCFS",
    Tmpfile = 51 "TMPFILE",
    Statx = 52 "STATX",
    CopyFileRange64 = 53 "COPY_FILE_RANGE_64",
}

impl Opcode {
    /// One more than the highest number: the length of a table that is indexed by opcode.
    pub const COUNT: usize = 54;

    /// The protocol's name, without its prefix.
    pub fn name(self) -> &'static str {
        Opcode::NAMES[self as usize]
    }

    /// False for FORGET, BATCH_FORGET, INTERRUPT and NOTIFY_REPLY, which have no reply.
    pub fn wants_reply(self) -> bool {
        !matches!(self, Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::NotifyReply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_from_1_to_53_but_7_and_19_is_an_opcode_with_a_name() {
        for number in 0..100 {
            match Opcode::from_number(number) {
                Some(opcode) => {
                    assert_eq!(opcode as u32, number);
                    assert!(!opcode.name().is_empty());
                }
                None => assert!(number == 0 || number == 7 || number == 19 || number > 53),
            }
        }
        assert_eq!(Opcode::ALL.len(), 51);
    }
}
