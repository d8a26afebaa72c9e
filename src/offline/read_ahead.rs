//! Reading ahead: several pieces are read at once and passed on in order.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind, OwnedBuffer};

/// Most bytes in a piece.
pub(super) const PIECE: u64 = 1 << 20;
/// Pieces that are being read or wait for those before them.
const AHEAD: usize = 8;

/// Bytes to read, at most [`PIECE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub device: DeviceId,
    pub offset: u64,
    pub len: u64,
}

/// Why reading ended early.
#[derive(Debug)]
pub(super) enum Stopped<E> {
    Read(Piece, Errno),
    By(E),
}

struct Job<T> {
    what: T,
    reads: SmallVec<[Reading; 2]>,
}

struct Reading {
    piece: Piece,
    result: Option<Result<OwnedBuffer, Errno>>,
}

/// Reads the pieces of each job and passes their content to `take`, one job after the
/// other. Memory is bounded by eight jobs. The disk must be idle, and is idle again when
/// this returns.
pub(super) fn read_ahead<T, E>(
    disk: &mut dyn Disk,
    jobs: impl IntoIterator<Item = (T, SmallVec<[Piece; 2]>)>,
    mut take: impl FnMut(T, &[&[u8]]) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let mut jobs = jobs.into_iter().fuse();
    let mut waiting: VecDeque<Job<T>> = VecDeque::new();
    let mut free: Vec<OwnedBuffer> = Vec::new();
    // Number of the first waiting job; tags are job number * 2 + read number.
    let mut first = 0u64;
    let mut done = Vec::new();
    let result = loop {
        while waiting.len() < AHEAD
            && let Some((what, pieces)) = jobs.next()
        {
            let tag = (first + waiting.len() as u64) * 2;
            for (index, piece) in (0..).zip(&pieces) {
                disk.submit(read(tag + index, *piece, &mut free));
            }
            let reads = pieces.into_iter().map(|piece| Reading {
                piece,
                result: None,
            });
            waiting.push_back(Job {
                what,
                reads: reads.collect(),
            });
        }
        let ready = |job: &Job<T>| job.reads.iter().all(|read| read.result.is_some());
        if waiting.front().is_some_and(|job| !ready(job)) && disk.in_flight() > 0 {
            disk.reap(true, &mut done);
            done.drain(..)
                .for_each(|done| note(done, first, &mut waiting));
            continue;
        }
        let Some(job) = waiting.pop_front() else {
            break Ok(());
        };
        first += 1;
        if let Err(stopped) = hand_over(job, &mut free, &mut take) {
            break Err(stopped);
        }
    };
    while disk.in_flight() > 0 {
        disk.reap(true, &mut done);
    }
    result
}

fn read(tag: u64, piece: Piece, free: &mut Vec<OwnedBuffer>) -> Op {
    let whole = usize::try_from(PIECE).unwrap_or(1 << 20);
    let mut buffer = free.pop().unwrap_or_else(|| OwnedBuffer::zeroed(whole));
    buffer.set_len(usize::try_from(piece.len).unwrap_or(whole));
    Op {
        tag,
        device: piece.device,
        kind: OpKind::Read {
            offset: piece.offset,
            buffer: Buffer::Owned(buffer),
        },
    }
}

fn note<T>(done: Done, first: u64, waiting: &mut VecDeque<Job<T>>) {
    let job = usize::try_from((done.tag / 2).saturating_sub(first)).unwrap_or(usize::MAX);
    let read = usize::from(done.tag % 2 == 1);
    let result = match (done.result, done.buffer) {
        (Ok(()), Some(Buffer::Owned(buffer))) => Ok(buffer),
        (Err(errno), _) => Err(errno),
        _ => Err(Errno::EIO),
    };
    if let Some(read) = waiting.get_mut(job).and_then(|j| j.reads.get_mut(read)) {
        read.result = Some(result);
    }
}

fn hand_over<T, E>(
    job: Job<T>,
    free: &mut Vec<OwnedBuffer>,
    take: &mut impl FnMut(T, &[&[u8]]) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let mut buffers: SmallVec<[OwnedBuffer; 2]> = SmallVec::new();
    for Reading { piece, result } in job.reads {
        match result {
            Some(Ok(buffer)) => buffers.push(buffer),
            Some(Err(errno)) => return Err(Stopped::Read(piece, errno)),
            None => return Err(Stopped::Read(piece, Errno::EIO)),
        }
    }
    let bytes: SmallVec<[&[u8]; 2]> = buffers.iter().map(OwnedBuffer::as_slice).collect();
    take(job.what, &bytes).map_err(Stopped::By)?;
    drop(bytes);
    free.extend(buffers);
    Ok(())
}
