//! Lines of text over a socket between the daemon and its launcher.

use std::io;
use std::os::unix::net;

use tokio::net::UnixStream;

/// Longest line in bytes. The events of the log are shorter.
const LINE_MAX: usize = 1 << 20;

/// One end of the socket.
pub struct Lines {
    stream: UnixStream,
    /// What was received and is not a line yet.
    received: Vec<u8>,
}

impl Lines {
    /// `stream` does not block.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn new(stream: net::UnixStream) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            received: Vec::new(),
        })
    }

    /// Sends `line`, which has no line break inside.
    pub async fn send(&self, line: &str) -> io::Result<()> {
        let text = format!("{line}\n");
        let mut left = text.as_bytes();
        while !left.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(left) {
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next line; `None`: the other end is closed. Nothing is lost if this is not awaited to
    /// its end.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                return Ok(Some(text.trim_end_matches('\n').to_owned()));
            }
            if self.received.len() > LINE_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.stream.readable().await?;
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(read) => self.received.extend(bytes.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_whole_and_an_endless_one_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (a, b) = net::UnixStream::pair().unwrap();
            a.set_nonblocking(true).unwrap();
            b.set_nonblocking(true).unwrap();
            let (a, mut b) = (Lines::new(a).unwrap(), Lines::new(b).unwrap());
            let long = "x".repeat(10_000);
            a.send("one").await.unwrap();
            a.send(&long).await.unwrap();
            assert_eq!(b.next().await.unwrap().as_deref(), Some("one"));
            assert_eq!(b.next().await.unwrap(), Some(long));
            let endless = "x".repeat(2 * LINE_MAX);
            let (sent, read) = tokio::join!(
                tokio::time::timeout(std::time::Duration::from_secs(60), a.send(&endless)),
                async {
                    let read = b.next().await;
                    drop(b);
                    read
                }
            );
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            assert!(sent.unwrap().is_err(), "nobody reads the rest");
        });
    }
}
