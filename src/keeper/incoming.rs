//! Messages put together from a stream, which may bring them in pieces. Never waits.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::message::{FDS_MAX, HEADER_LEN, Message, PAYLOAD_MAX, payload_len};

/// What a read brought.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Nothing.
    Nothing,
    /// A piece of a message.
    Piece,
    /// The last that comes: the stream ended, perhaps within a message, or this header is none, so that nothing behind it can be
    /// told apart.
    Last(Message),
}

/// The beginning of a message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Incoming {
    message: Message,
}

impl Incoming {
    /// What has come of the next message.
    pub fn beginning(&self) -> &Message {
        &self.message
    }

    /// Reads once from `socket`, at most to the end of the message. Descriptors that come with a later byte than the header's are
    /// closed, as the worker's own reads of the payload do.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        let have = self.message.bytes.len();
        // A header that is whole and not valid was returned before.
        let wanted = if have < HEADER_LEN { HEADER_LEN } else { HEADER_LEN + payload_len(&self.message.bytes).unwrap_or(0) };
        let mut piece = [0; HEADER_LEN + PAYLOAD_MAX];
        match receive_piece(socket, &mut piece[..wanted - have])? {
            None => return Ok(Received::Nothing),
            Some((0, _)) => return Ok(Received::Last(std::mem::take(&mut self.message))),
            Some((len, fds)) => {
                self.message.bytes.extend_from_slice(&piece[..len]);
                if have < HEADER_LEN {
                    self.message.fds.extend(fds.into_iter().take(FDS_MAX - self.message.fds.len().min(FDS_MAX)));
                }
            }
        }
        let have = self.message.bytes.len();
        if have < HEADER_LEN {
            return Ok(Received::Piece);
        }
        Ok(match payload_len(&self.message.bytes) {
            Some(len) if have == HEADER_LEN + len => Received::Message(std::mem::take(&mut self.message)),
            Some(_) => Received::Piece,
            None => Received::Last(std::mem::take(&mut self.message)),
        })
    }
}

/// Reads what is there, with its descriptors; no bytes at the end of the stream. `None` where nothing is there.
fn receive_piece(socket: BorrowedFd<'_>, piece: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let len = match recvmsg(socket, &mut [IoSliceMut::new(piece)], &mut control, flags) {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        // The other end was closed with unread bytes.
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut fds = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            fds.extend(rights);
        }
    }
    Ok(Some((len, fds)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// SET_FEATURES.
    fn message() -> Vec<u8> {
        let mut bytes: Vec<u8> = [2u32, 1, 8].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(7u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_message_in_single_bytes_becomes_one() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::default();
        let bytes = message();
        for (at, byte) in bytes.iter().enumerate() {
            assert!(matches!(incoming.receive(theirs.as_fd()).unwrap(), Received::Nothing));
            ours.write_all(&[*byte]).unwrap();
            match incoming.receive(theirs.as_fd()).unwrap() {
                Received::Piece => assert!(at + 1 < bytes.len()),
                Received::Message(message) => assert_eq!((at + 1, &message.bytes), (bytes.len(), &bytes)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn two_messages_are_not_read_as_one_and_half_of_one_is_the_last() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::default();
        let bytes = [message(), message(), message()[..15].to_vec()].concat();
        ours.write_all(&bytes).unwrap();
        drop(ours);
        let mut whole = 0;
        let last = loop {
            match incoming.receive(theirs.as_fd()).unwrap() {
                Received::Message(found) => {
                    assert_eq!(found.bytes, message());
                    whole += 1;
                }
                Received::Nothing | Received::Piece => {}
                Received::Last(last) => break last,
            }
        };
        assert_eq!((whole, last.bytes), (2, message()[..15].to_vec()));
    }

    #[test]
    fn a_header_that_is_none_is_the_last() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0xff; 40]).unwrap();
        match Incoming::default().receive(theirs.as_fd()).unwrap() {
            Received::Last(last) => assert_eq!(last.bytes, [0xff; HEADER_LEN]),
            other => panic!("{other:?}"),
        }
    }
}
