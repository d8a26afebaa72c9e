//! Messages of a front end, made of a fuzzer's bytes: well-formed ones for the memory and
//! the ring of [`fill`], unless the bytes ask for something else.

use super::input::Input;
use super::socket::MEMORY;

/// A message, and the kinds of its descriptors.
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<u8>,
}

/// Where the guest's memory is in the front end's process.
const USER: u64 = 0x7000_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_LOG_FD: u32 = 7;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

/// In the order of a connection, then those without a payload.
const REQUESTS: [u32; 34] = [
    GET_FEATURES,
    15,
    SET_PROTOCOL_FEATURES,
    3,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_KICK,
    SET_VRING_ENABLE,
    GET_VRING_BASE,
    SET_VRING_ERR,
    SET_BACKEND_REQ_FD,
    GET_CONFIG,
    SET_CONFIG,
    GET_INFLIGHT_FD,
    SET_INFLIGHT_FD,
    ADD_MEM_REG,
    REM_MEM_REG,
    SET_LOG_BASE,
    4,
    SET_LOG_FD,
    17,
    34,
    36,
    39,
    40,
    41,
    42,
    43,
    44,
    20,
];

/// Memory with a ring of 8, on which a write, a read and a flush are available.
pub fn fill(mut write: impl FnMut(u64, &[u8])) {
    let mut descriptor = |number: u64, address: u64, len: u32, flags: u16, next: u16| {
        write(16 * number, &address.to_le_bytes());
        write(16 * number + 8, &len.to_le_bytes());
        write(16 * number + 12, &flags.to_le_bytes());
        write(16 * number + 14, &next.to_le_bytes());
    };
    descriptor(0, 0x4000, 16, 1, 1);
    descriptor(1, 0x5000, 4096, 1, 2);
    descriptor(2, 0x4010, 1, 2, 0);
    descriptor(3, 0x4100, 16, 1, 4);
    descriptor(4, 0x6000, 8192, 3, 5);
    descriptor(5, 0x4110, 1, 2, 0);
    descriptor(6, 0x4200, 16, 1, 7);
    descriptor(7, 0x4210, 1, 2, 0);
    for (at, kind, sector) in [(0x4000, 1_u32, 4_u64), (0x4100, 0, 2), (0x4200, 4, 0)] {
        write(at, &kind.to_le_bytes());
        write(at + 8, &sector.to_le_bytes());
    }
    for (place, head) in [0_u16, 3, 6].iter().enumerate() {
        write(AVAILABLE + 4 + 2 * place as u64, &head.to_le_bytes());
    }
    write(AVAILABLE + 2, &3_u16.to_le_bytes());
}

/// A number, this one in the ordinary case.
fn or(input: &mut Input<'_>, ordinary: u64) -> u64 {
    match input.byte() {
        0..200 => ordinary,
        200..220 => ordinary.wrapping_add(input.u16().into()),
        220..230 => ordinary.wrapping_sub(input.byte().into()),
        230..240 => u64::MAX - u64::from(input.byte()),
        240..248 => input.byte().into(),
        _ => input.u64(),
    }
}

fn put(payload: &mut Vec<u8>, words: &[u64]) {
    words
        .iter()
        .for_each(|word| payload.extend(word.to_le_bytes()));
}

fn put32(payload: &mut Vec<u8>, input: &mut Input<'_>, words: &[u64]) {
    for word in words {
        payload.extend((or(input, *word) as u32).to_le_bytes());
    }
}

/// Guest address, size, front-end address, offset.
fn region(input: &mut Input<'_>, number: u64) -> [u64; 4] {
    let at = number * MEMORY;
    [at, MEMORY, USER + at, 0].map(|word| or(input, word))
}

/// The payload and the descriptors that a request has.
fn payload(request: u32, input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut payload, mut fds) = (Vec::new(), Vec::new());
    let queue = u64::from(input.byte() & 1);
    match request {
        SET_FEATURES => put(
            &mut payload,
            &[or(input, 1 << 30 | 1 << 32 | 1 << 29 | 0x1244)],
        ),
        SET_PROTOCOL_FEATURES => put(&mut payload, &[or(input, 0xb22b)]),
        SET_MEM_TABLE => {
            let count = 1 + u64::from(input.byte() % 4);
            put32(&mut payload, input, &[count]);
            payload.extend([0; 4]);
            for number in 0..count {
                put(&mut payload, &region(input, number));
                fds.push(0);
            }
        }
        ADD_MEM_REG | REM_MEM_REG => {
            put(&mut payload, &[or(input, 0)]);
            let number = u64::from(input.byte() % 4);
            put(&mut payload, &region(input, number));
            if request == ADD_MEM_REG {
                fds.push(0);
            }
        }
        SET_VRING_NUM => put32(&mut payload, input, &[queue, 8]),
        SET_VRING_BASE | GET_VRING_BASE => put32(&mut payload, input, &[queue, 0]),
        SET_VRING_ENABLE => put32(&mut payload, input, &[queue, 1]),
        SET_VRING_ADDR => {
            put32(&mut payload, input, &[queue, 0]);
            let words = [USER, USER + USED, USER + AVAILABLE, 0];
            put(&mut payload, &words.map(|word| or(input, word)));
        }
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
            put(&mut payload, &[or(input, queue)]);
            fds.push(1);
        }
        SET_BACKEND_REQ_FD => fds.push(7),
        GET_CONFIG | SET_CONFIG => {
            let len = if request == GET_CONFIG { 60 } else { 1 };
            let at = if request == GET_CONFIG { 0 } else { 32 };
            put32(&mut payload, input, &[at, len, 0]);
            let bytes = input.byte();
            payload.extend(vec![bytes; len as usize]);
        }
        GET_INFLIGHT_FD | SET_INFLIGHT_FD => {
            let len = or(input, 192);
            put(&mut payload, &[len, or(input, 0)]);
            payload.extend((or(input, 1) as u16).to_le_bytes());
            payload.extend((or(input, 8) as u16).to_le_bytes());
            // The protocol's structure has a length of 24 bytes.
            payload.extend([0; 4]);
            if request == SET_INFLIGHT_FD {
                fds.push(2);
            }
        }
        SET_LOG_BASE => {
            put(&mut payload, &[or(input, 4096), or(input, 0)]);
            fds.push(2);
        }
        SET_LOG_FD => fds.push(1),
        _ => {}
    }
    (payload, fds)
}

/// The next message.
pub fn message(input: &mut Input<'_>) -> Message {
    let code = input.byte();
    let request = match REQUESTS.get(usize::from(code)) {
        Some(request) => *request,
        None if code < 250 => REQUESTS[usize::from(code) % REQUESTS.len()],
        None => input.u32(),
    };
    let (mut payload, mut fds) = payload(request, input);
    let mut flags = 1 | u32::from(input.byte() & 1) << 3;
    let mut len = payload.len() as u32;
    match input.byte() {
        200..205 => flags = input.u32(),
        205..210 => len = len.wrapping_add_signed(i32::from(input.byte() as i8)),
        210..215 => len = input.u32(),
        215..225 => {
            let extra = input.byte();
            fds.extend(input.take(usize::from(extra % 8)));
        }
        225..230 => drop(fds.pop()),
        230..240 => {
            let kind = input.byte();
            fds.iter_mut().for_each(|fd| *fd = kind);
        }
        240..245 => payload.extend(input.take(32)),
        245..250 => {
            let cut = usize::from(input.byte());
            payload.truncate(payload.len().saturating_sub(cut));
        }
        _ => {}
    }
    fds.truncate(9);
    let mut bytes = Vec::new();
    for word in [request, flags, len] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    Message { bytes, fds }
}
