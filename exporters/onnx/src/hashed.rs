//! A file that is hashed while it is written: making bytes, writing, hashing and bringing to the disk run at the same time.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use camino::Utf8Path;
use fs_err::File;
use sha2::{Digest, Sha256};

/// Bytes that go from thread to thread at a time.
const PIECE: usize = 1 << 20;
/// Pieces that wait for a thread at most: the bound of the memory.
const WAITING: usize = 8;
/// Pieces after which the disk is told to take what was written, so that little is left to wait for at the end.
const PER_SYNC: usize = 64;

/// A new file that bytes are appended to. Dropped before [`finish`](Self::finish), its threads end and the file stays as far as
/// it was written.
pub(crate) struct HashedFile {
    piece: Vec<u8>,
    /// Pieces that were hashed, to be filled again.
    free: Receiver<Vec<u8>>,
    /// `None` once no more are to come.
    written: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<io::Result<()>>>,
    hasher: Option<JoinHandle<Sha256>>,
    size: u64,
}

impl HashedFile {
    /// Makes the file.
    pub(crate) fn create(path: &Utf8Path) -> io::Result<Self> {
        let file = Arc::new(File::create(path)?);
        let (written, to_write) = sync_channel::<Vec<u8>>(WAITING);
        let (hashed, to_hash) = sync_channel::<Vec<u8>>(WAITING);
        let (done, free) = channel();
        let hasher = spawn("hash", move || hash(&to_hash, &done))?;
        let writer = spawn("write", move || write(&file, &to_write, &hashed))?;
        let (writer, hasher) = (Some(writer), Some(hasher));
        Ok(Self { piece: Vec::with_capacity(PIECE), free, written: Some(written), writer, hasher, size: 0 })
    }

    /// Bytes that were appended.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends bytes. A disk that refuses may say so at a later call.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Writes what is left; size and SHA-256 of the file, which is on the disk.
    pub(crate) fn finish(mut self) -> io::Result<(u64, String)> {
        self.send()?;
        self.join()?;
        let hash = self.hasher.take().map(JoinHandle::join);
        match hash {
            Some(Ok(hash)) => Ok((self.size, hex::encode(hash.finalize()))),
            _ => Err(io::Error::other("the thread that hashes has ended")),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let next = match self.free.try_recv() {
            Ok(piece) => piece,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Vec::with_capacity(PIECE),
        };
        let piece = std::mem::replace(&mut self.piece, next);
        match &self.written {
            Some(written) if written.send(piece).is_ok() => Ok(()),
            // The thread has ended: it says why.
            _ => self.join().and(Err(io::Error::other("the thread that writes has ended"))),
        }
    }

    /// Waits until everything is written.
    fn join(&mut self) -> io::Result<()> {
        self.written = None;
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(io::Error::other("the thread that writes has panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for HashedFile {
    fn drop(&mut self) {
        // Nothing writes into a folder that is about to be removed.
        let _ = self.join();
        if let Some(hasher) = self.hasher.take() {
            let _ = hasher.join();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

fn write(file: &Arc<File>, pieces: &Receiver<Vec<u8>>, hashed: &SyncSender<Vec<u8>>) -> io::Result<()> {
    let (wake, syncs) = sync_channel(1);
    let on_disk = Arc::clone(file);
    let syncer = spawn("sync", move || {
        while let Ok(()) = syncs.recv() {
            on_disk.sync_data()?;
        }
        Ok(())
    })?;
    let mut out: &File = file;
    let mut pushed = || -> io::Result<()> {
        for (i, piece) in pieces.iter().enumerate() {
            out.write_all(&piece)?;
            if i % PER_SYNC == PER_SYNC - 1 {
                // Where the last one is not done yet, the next one takes more.
                let _ = wake.try_send(());
            }
            if hashed.send(piece).is_err() {
                return Err(io::Error::other("the thread that hashes has ended"));
            }
        }
        Ok(())
    };
    let pushed = pushed();
    drop(wake);
    let synced =
        syncer.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs has panicked")));
    pushed.and(synced).and_then(|()| file.sync_all())
}

fn hash(pieces: &Receiver<Vec<u8>>, done: &Sender<Vec<u8>>) -> Sha256 {
    let mut hash = Sha256::new();
    for mut piece in pieces {
        hash.update(&piece);
        piece.clear();
        // Nobody fills it again at the end.
        let _ = done.send(piece);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_pushed_and_so_is_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("f");
        let bytes: Vec<u8> = (0..5 * PIECE / 2 + 7).map(|i| (i * 31 % 251) as u8).collect();
        for step in [1 << 10, PIECE - 1, PIECE, 2 * PIECE + 1] {
            let mut sink = HashedFile::create(&path).unwrap();
            for piece in bytes.chunks(step) {
                sink.push(piece).unwrap();
            }
            let found = sink.finish().unwrap();
            assert_eq!(found, (bytes.len() as u64, hex::encode(Sha256::digest(&bytes))), "{step}");
            assert_eq!(fs_err::read(&path).unwrap(), bytes, "{step}");
        }
        let empty = HashedFile::create(&path).unwrap().finish().unwrap();
        assert_eq!(empty, (0, hex::encode(Sha256::digest([]))));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_not_a_shorter_file() {
        let full = Utf8Path::new("/dev/full");
        let mut sink = HashedFile::create(full).unwrap();
        let piece = vec![0; PIECE];
        // More than may wait, so that a push meets it.
        let refused = (0..4 * WAITING).find_map(|_| sink.push(&piece).err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::StorageFull);
        let mut sink = HashedFile::create(full).unwrap();
        sink.push(&piece[..10]).unwrap();
        assert_eq!(sink.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        // Dropped in the middle: its threads end.
        let mut sink = HashedFile::create(full).unwrap();
        sink.push(&piece[..10]).unwrap();
        drop(sink);
    }
}
