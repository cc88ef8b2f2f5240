//! Ranks that are processes, on one host or several: every rank is connected with rank 0.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::communicator::Kind;
use super::{Communicator, Message, RankError};

/// Begins what a rank says first.
const HELLO: [u8; 8] = *b"deft-rk1";
/// How much longer than rank 0 the others wait at most, so that its word on who is late arrives.
const GRACE: Duration = Duration::from_secs(2);
/// How often is looked whether somebody came.
const POLL: Duration = Duration::from_millis(10);
/// Longest message of a rank.
const MAX_BYTES: u64 = 1 << 32;
/// The kind of a message that ends the run.
const ABORT: u8 = u8::MAX;

/// A rank among processes. Rank 0 listens at an address that all know, and passes on what each brings.
///
/// Whoever reaches that address may take part: it belongs in a network that is trusted.
#[derive(Debug)]
pub struct Tcp {
    rank: u32,
    ranks: u32,
    timeout: Duration,
    /// Of rank 0: the others, in order. Of another: rank 0.
    peers: Vec<TcpStream>,
    over: Option<RankError>,
}

impl Tcp {
    /// Meets the other ranks at `address` (`host:port`, of rank 0), for which there are `patience` to come. Collectives
    /// wait `timeout` for a rank.
    ///
    /// # Errors
    /// [`RankError::Argument`], [`RankError::Meeting`].
    pub fn meet(
        (rank, ranks): (u32, u32),
        address: &str,
        patience: Duration,
        timeout: Duration,
    ) -> Result<Self, RankError> {
        if rank >= ranks {
            let expected = format!("below the number of ranks, {ranks}");
            return Err(RankError::argument("rank", rank, expected));
        }
        let meeting = Meeting { rank, ranks, address, deadline: Instant::now() + patience };
        let peers = match (rank, ranks) {
            (_, 1) => Vec::new(),
            (0, _) => meeting.accept()?,
            _ => vec![meeting.connect()?],
        };
        for peer in &peers {
            peer.set_write_timeout(Some(timeout)).map_err(|error| meeting.error(error))?;
        }
        Ok(Self { rank, ranks, timeout, peers, over: None })
    }

    /// The rank at the other end of `peers[index]`.
    fn peer(&self, index: usize) -> u32 {
        if self.rank == 0 { index as u32 + 1 } else { 0 }
    }

    /// Reads a message of a peer.
    fn read(
        &mut self,
        index: usize,
        own: Kind,
        (deadline, limit): (Option<Instant>, Duration),
    ) -> Result<Message, RankError> {
        let rank = self.peer(index);
        let stalled = || RankError::Stalled { rank, what: own.to_string(), after: limit };
        let mut header = [0; 9];
        let mut take = |bytes: &mut [u8]| fill(&mut self.peers[index], bytes, deadline);
        let result = take(&mut header).and_then(|()| {
            let [code, length @ ..] = header;
            let length = u64::from_le_bytes(length);
            if length > MAX_BYTES {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut bytes = vec![0; length as usize];
            take(&mut bytes)?;
            Ok((code, bytes))
        });
        let (code, bytes) = result.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => stalled(),
            _ => gone(rank, &error),
        })?;
        match Kind::from_code(code) {
            Some(kind) => Ok(Message { kind, bytes: bytes.into() }),
            None if code == ABORT => Err(decode_over(&bytes)),
            None => Err(gone(rank, &ErrorKind::InvalidData.into())),
        }
    }

    fn write(&mut self, index: usize, code: u8, bytes: &[u8]) -> Result<(), RankError> {
        let rank = self.peer(index);
        let stream = &mut self.peers[index];
        let mut all = Vec::with_capacity(9 + bytes.len());
        all.push(code);
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
        stream.write_all(&all).map_err(|error| gone(rank, &error))
    }

    fn try_exchange(
        &mut self,
        own: &Message,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError> {
        let grace =
            |limit: Duration| if self.rank == 0 { Duration::ZERO } else { GRACE.min(limit) };
        let limit = limit.map(|limit| limit + grace(limit));
        let until = (limit.map(|limit| Instant::now() + limit), limit.unwrap_or_default());
        if self.rank > 0 {
            self.write(0, own.kind as u8, &own.bytes)?;
            return (0..self.ranks).map(|_| self.read(0, own.kind, until)).collect();
        }
        let mut all = vec![own.clone()];
        for index in 0..self.peers.len() {
            all.push(self.read(index, own.kind, until)?);
        }
        for index in 0..self.peers.len() {
            for message in &all {
                self.write(index, message.kind as u8, &message.bytes)?;
            }
        }
        Ok(all)
    }

    /// Ends it for all ranks that can be reached.
    fn end(&mut self, error: RankError) -> RankError {
        if self.over.is_none() {
            let bytes = encode_over(self.rank, &error);
            for index in 0..self.peers.len() {
                // Who cannot be reached notices by itself.
                let _ = self.write(index, ABORT, &bytes);
            }
            self.over = Some(error.clone());
        }
        self.over.clone().unwrap_or(error)
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn ranks(&self) -> u32 {
        self.ranks
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn exchange(
        &mut self,
        own: Message,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let all = self.try_exchange(&own, limit);
        all.map_err(|error| self.end(error))
    }

    fn watch(&mut self) -> Result<(), RankError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        for index in 0..self.peers.len() {
            let error = match next_byte(&self.peers[index]) {
                Ok(Some(ABORT)) => {
                    let limit = self.timeout;
                    let until = (Some(Instant::now() + limit), limit);
                    self.read(index, Kind::Barrier, until).err()
                }
                // Another rank may be further.
                Ok(_) => None,
                Err(error) => Some(gone(self.peer(index), &error)),
            };
            if let Some(error) = error {
                return Err(self.end(error));
            }
        }
        Ok(())
    }

    fn abort(&mut self, reason: &str) {
        let error = RankError::Aborted { rank: self.rank, reason: reason.to_owned() };
        self.end(error);
    }
}

fn gone(rank: u32, error: &std::io::Error) -> RankError {
    let reason = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "its connection is closed".to_owned()
        }
        ErrorKind::InvalidData => "it says what no rank says".to_owned(),
        _ => error.to_string(),
    };
    RankError::Gone { rank, reason }
}

/// Of an error that a rank tells the others: which rank is at fault, how, and in which words.
fn encode_over(own: u32, error: &RankError) -> Vec<u8> {
    let (code, rank, text, millis) = match error {
        RankError::Gone { rank, reason } => (0_u8, *rank, reason.clone(), 0),
        RankError::Stalled { rank, what, after } => {
            (1, *rank, what.clone(), after.as_millis() as u64)
        }
        RankError::Aborted { rank, reason } => (2, *rank, reason.clone(), 0),
        other => (2, own, other.to_string(), 0),
    };
    let head = [&[code][..], &rank.to_le_bytes(), &millis.to_le_bytes()].concat();
    [head, text.into_bytes()].concat()
}

fn decode_over(bytes: &[u8]) -> RankError {
    let Some((head, text)) = bytes.split_first_chunk::<13>() else {
        return gone(0, &ErrorKind::InvalidData.into());
    };
    let [code, rest @ ..] = head;
    let (rank, millis) = rest.split_at(4);
    let rank = u32::from_le_bytes(rank.try_into().unwrap_or_default());
    let after = Duration::from_millis(u64::from_le_bytes(millis.try_into().unwrap_or_default()));
    let text = String::from_utf8_lossy(text).into_owned();
    match code {
        0 => RankError::Gone { rank, reason: text },
        1 => RankError::Stalled { rank, what: text, after },
        _ => RankError::Aborted { rank, reason: text },
    }
}

/// What comes next on a connection, if it is there; it stays.
fn next_byte(stream: &TcpStream) -> Result<Option<u8>, std::io::Error> {
    let mut next = [0];
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut next));
    match stream.set_nonblocking(false).and(peeked) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(Some(next[0])),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads all of `bytes`, until `deadline`.
fn fill(
    stream: &mut TcpStream,
    mut bytes: &mut [u8],
    deadline: Option<Instant>,
) -> Result<(), std::io::Error> {
    while !bytes.is_empty() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(left)?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A rank that looks for the others.
struct Meeting<'a> {
    rank: u32,
    ranks: u32,
    address: &'a str,
    deadline: Instant,
}

impl Meeting<'_> {
    fn error(&self, reason: impl ToString) -> RankError {
        let (address, reason) = (self.address.to_owned(), reason.to_string());
        RankError::Meeting { rank: self.rank, address, reason }
    }

    /// What is said first: how many ranks there are, and which this is.
    fn hello(&self) -> [u8; 16] {
        let mut hello = [0; 16];
        hello[..8].copy_from_slice(&HELLO);
        hello[8..12].copy_from_slice(&self.ranks.to_le_bytes());
        hello[12..].copy_from_slice(&self.rank.to_le_bytes());
        hello
    }

    fn accept(&self) -> Result<Vec<TcpStream>, RankError> {
        let listener = TcpListener::bind(self.address).map_err(|error| self.error(error))?;
        listener.set_nonblocking(true).map_err(|error| self.error(error))?;
        let mut peers: Vec<Option<TcpStream>> = (1..self.ranks).map(|_| None).collect();
        while let Some(missing) = peers.iter().position(Option::is_none) {
            match listener.accept() {
                Ok((stream, _)) => self.welcome(stream, &mut peers)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= self.deadline {
                        return Err(self.error(format!("rank {} did not come", missing + 1)));
                    }
                    std::thread::sleep(POLL);
                }
                Err(error) => return Err(self.error(error)),
            }
        }
        Ok(peers.into_iter().flatten().collect())
    }

    /// Takes in who has come. Somebody who is no rank is sent away.
    fn welcome(
        &self,
        mut stream: TcpStream,
        peers: &mut [Option<TcpStream>],
    ) -> Result<(), RankError> {
        let ready = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
        ready.map_err(|error| self.error(error))?;
        let mut hello = [0; 16];
        let soon = Instant::now() + GRACE;
        if fill(&mut stream, &mut hello, Some(soon.min(self.deadline))).is_err()
            || hello[..8] != HELLO
        {
            return Ok(());
        }
        let word = |at: usize| u32::from_le_bytes(hello[at..at + 4].try_into().unwrap_or_default());
        let (ranks, rank) = (word(8), word(12));
        if ranks != self.ranks {
            let reason =
                format!("rank {rank} says that there are {ranks} ranks, not {}", self.ranks);
            return Err(self.error(reason));
        }
        let place = (rank as usize).checked_sub(1).and_then(|at| peers.get_mut(at));
        match place {
            Some(place) if place.is_none() => *place = Some(stream),
            _ => return Err(self.error(format!("there are two ranks {rank}"))),
        }
        Ok(())
    }

    fn connect(&self) -> Result<TcpStream, RankError> {
        loop {
            let attempt = self.address.to_socket_addrs().and_then(|mut addresses| {
                let none = || std::io::Error::from(ErrorKind::NotFound);
                TcpStream::connect_timeout(&addresses.next().ok_or_else(none)?, GRACE)
            });
            let error = match attempt {
                Ok(mut stream) => {
                    let said =
                        stream.set_nodelay(true).and_then(|()| stream.write_all(&self.hello()));
                    return said.map(|()| stream).map_err(|error| self.error(error));
                }
                Err(error) => error,
            };
            // Rank 0 may not be there yet.
            if Instant::now() >= self.deadline {
                return Err(self.error(error));
            }
            std::thread::sleep(POLL);
        }
    }
}
