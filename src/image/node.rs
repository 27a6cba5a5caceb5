//! Plan B for a cluster that cannot pull: the image goes over SSH straight into a node's containerd.
//!
//! What is sent is an OCI layout as a gzip'd tar, made while it is sent. Its layers are plain, so their names are known
//! before they are read; gzip is for the line. containerd says in the end which digest it has, and that must be ours.

use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use crate::ssh::{self, Connection, Target};

use super::compress::{Method, Pool};
use super::digest::Hasher;
use super::reference;
use super::report::{Layer as LayerReport, Push as Report, State};
use super::source::{Image, Manifest, Stored};
use super::{Digest, Error};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The most that is kept of what the node says, in bytes.
const MAX_WORDS: usize = 64 * 1024;

/// `ssh://[user@]host[:port]/NAME:TAG`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The host.
    pub target: Target,
    /// The image's name as containerd has it: with the registry's host in front.
    pub name: String,
}

impl Node {
    /// Reads it. `None`: it is no such destination.
    ///
    /// # Errors
    /// [`Error::Argument`] that says which part cannot be.
    pub fn parse(given: &str) -> Option<Result<Self, Error>> {
        let rest = given.strip_prefix("ssh://")?;
        let wrong = |why: &str| Error::Argument { given: given.to_owned(), why: why.to_owned() };
        let parse = || {
            let (host, name) =
                rest.split_once('/').ok_or_else(|| wrong("wanted ssh://[user@]host[:port]/NAME:TAG"))?;
            let target = host.parse().map_err(|error: ssh::Error| wrong(&error.to_string()))?;
            let first = name.split('/').next().unwrap_or_default();
            let has_host = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
            // Kubernetes takes a name without a host for one of Docker's.
            let full = match (has_host, name.contains('/')) {
                (true, _) => name.to_owned(),
                (false, true) => format!("docker.io/{name}"),
                (false, false) => format!("docker.io/library/{name}"),
            };
            let parsed = super::Destination::parse(&full)?;
            let tag =
                parsed.tag.ok_or_else(|| wrong("a tag is wanted: ssh://[user@]host[:port]/NAME:TAG"))?;
            reference::check_tag(&tag)?;
            Ok(Self { target, name: format!("{}:{tag}", parsed.repository) })
        };
        Some(parse())
    }
}

/// A blob of the layout that is sent.
struct Blob {
    digest: Digest,
    size: u64,
}

/// Sends an image into a node's containerd. `ctr` is the command there; by default `k3s ctr`, else `ctr -n k8s.io`.
///
/// # Errors
/// When the source is at fault, the node cannot be reached, has no containerd, or has another digest in the end.
pub fn push(
    image: &Image,
    node: &Node,
    options: &ssh::Options,
    ctr: Option<&str>,
    sent: &Arc<AtomicU64>,
) -> Result<Report, Error> {
    let began = Instant::now();
    let failed = |why: String| Error::Node { host: node.target.to_string(), why };
    let (manifest, layers) = manifest(image)?;
    let digest = Digest::of(&manifest.bytes);
    let archive = archive(image, &manifest, &layers, &node.name)?;
    let connection = Connection::open(&node.target, options).map_err(|error| failed(error.to_string()))?;
    let mut packed =
        Packed::start(archive, Arc::clone(sent)).map_err(|error| Error::io(image.path(), error))?;
    let command = command(ctr, &node.name);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut out = Bounded(&mut stdout);
    let mut err = Bounded(&mut stderr);
    let exit = connection.run(&command, &mut packed, &mut out, &mut err);
    if let Some(error) = packed.fault.take() {
        return Err(Error::lie(image.path(), error.to_string()));
    }
    let exit = exit.map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&stderr);
    if !exit.success() {
        let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(failed(format!("the import failed: {}", last.join("; "))));
    }
    let there = String::from_utf8_lossy(&stdout);
    let line = there.lines().find(|line| line.split_whitespace().next() == Some(node.name.as_str()));
    match line {
        Some(line) if line.contains("incomplete") => {
            return Err(failed(format!("has {} only in part after the import", node.name)));
        }
        Some(line) if line.contains(digest.as_str()) => {}
        Some(_) => return Err(failed(format!("has another digest for {} than {digest}", node.name))),
        None => return Err(failed(format!("does not show {} after the import", node.name))),
    }
    Ok(report(image, node, &manifest, &layers, State::Sent, packed.length, began))
}

/// What a push would send: all of it, since a node cannot tell what it has. The line carries less, compressed.
///
/// # Errors
/// When the source is at fault.
pub fn all_of(image: &Image, node: &Node) -> Result<Report, Error> {
    let (manifest, layers) = manifest(image)?;
    Ok(report(image, node, &manifest, &layers, State::WouldSend, 0, Instant::now()))
}

fn report(
    image: &Image,
    node: &Node,
    manifest: &Manifest,
    layers: &[Blob],
    state: State,
    uploaded: u64,
    began: Instant,
) -> Report {
    let seconds = began.elapsed().as_secs_f64();
    let reports = layers.iter().zip(&image.layers).map(|(blob, layer)| LayerReport {
        diff_id: layer.diff_id.clone(),
        digest: Some(blob.digest.clone()),
        size: Some(blob.size),
        stored_size: layer.stored_size,
        state,
        seconds,
        paths: Vec::new(),
    });
    let (repository, tag) = node.name.rsplit_once(':').unwrap_or((&node.name, ""));
    Report {
        repository: repository.to_owned(),
        tags: vec![tag.to_owned()],
        digest: Some(Digest::of(&manifest.bytes)),
        size: Some(layers.iter().map(|blob| blob.size).sum::<u64>() + image.config.len() as u64),
        uploaded,
        layers: reports.collect(),
        seconds,
        dry_run: state == State::WouldSend,
    }
}

/// The command on the node: import, then tell what is there.
fn command(ctr: Option<&str>, name: &str) -> String {
    let find = match ctr {
        // The caller's own words: may hold arguments.
        Some(ctr) => format!("c={}", ssh::quoted(ctr)),
        None => "if command -v k3s >/dev/null 2>&1; then c='k3s ctr'; \
                 elif [ -x /usr/local/bin/k3s ]; then c='/usr/local/bin/k3s ctr'; \
                 elif command -v ctr >/dev/null 2>&1; then c='ctr -n k8s.io'; \
                 else echo 'neither k3s nor ctr is there' >&2; exit 127; fi; \
                 if [ \"$(id -u)\" != 0 ]; then c=\"sudo -n $c\"; fi"
            .to_owned(),
    };
    let script = format!(
        "{find}; gzip -dc | $c images import - >&2 || exit 1; exec $c images check {}",
        ssh::quoted(&format!("name=={name}"))
    );
    format!("sh -c {}", ssh::quoted(&script))
}

/// The manifest to send, and the layers' blobs as they will be.
fn manifest(image: &Image) -> Result<(Manifest, Vec<Blob>), Error> {
    let mut blobs = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let digest = match (&layer.digest, &layer.diff_id, layer.stored) {
            (Some(digest), _, _) => digest.clone(),
            (None, Some(diff_id), Stored::Plain) => diff_id.clone(),
            // Named by nobody: it has to be read for its name.
            _ => {
                let mut hasher = Hasher::default();
                io::copy(&mut image.read_layer(layer)?, &mut hasher)
                    .map_err(|e| Error::io(image.path(), e))?;
                hasher.finish()
            }
        };
        blobs.push(Blob { digest, size: layer.stored_size });
    }
    if let Some(manifest) = &image.manifest {
        return Ok((manifest.clone(), blobs));
    }
    let layers = blobs.iter().zip(&image.layers).map(|(blob, layer)| {
        let kind = match layer.stored {
            Stored::Packed(codec) => format!("{OCI_LAYER}+{}", codec.name()),
            _ => OCI_LAYER.to_owned(),
        };
        serde_json::json!({"mediaType": kind, "size": blob.size, "digest": blob.digest})
    });
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "size": image.config.len(), "digest": Digest::of(&image.config)},
        "layers": layers.collect::<Vec<_>>(),
    });
    let bytes = document.to_string().into_bytes();
    Ok((Manifest { media_type: OCI_MANIFEST.to_owned(), bytes }, blobs))
}

/// The layout as a tar, to be read once.
fn archive(
    image: &Image,
    manifest: &Manifest,
    layers: &[Blob],
    name: &str,
) -> Result<Box<dyn Read + Send>, Error> {
    let mut tar: Box<dyn Read + Send> = Box::new(io::empty());
    let mut add = |name: &str, size: u64, bytes: Box<dyn Read + Send>| {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        // All names here are short.
        let _ = header.set_path(name);
        header.set_cksum();
        let padding = vec![0; usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0)];
        let header = Cursor::new(header.as_bytes().to_vec());
        let before = std::mem::replace(&mut tar, Box::new(io::empty()));
        tar = Box::new(before.chain(header).chain(bytes).chain(Cursor::new(padding)));
    };
    let small = |bytes: Vec<u8>| -> (u64, Box<dyn Read + Send>) {
        (bytes.len() as u64, Box::new(Cursor::new(bytes)))
    };
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let manifest_digest = Digest::of(&manifest.bytes);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": manifest.media_type,
            "size": manifest.bytes.len(),
            "digest": manifest_digest,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rsplit(':').next(),
            },
        }],
    });
    let (size, bytes) = small(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    add("oci-layout", size, bytes);
    let (size, bytes) = small(index.to_string().into_bytes());
    add("index.json", size, bytes);
    let (size, bytes) = small(manifest.bytes.clone());
    add(&blob(&manifest_digest), size, bytes);
    let (size, bytes) = small(image.config.clone());
    add(&blob(&Digest::of(&image.config)), size, bytes);
    let mut seen = Vec::new();
    for (layer, to_be) in image.layers.iter().zip(layers) {
        if seen.contains(&&to_be.digest) {
            continue;
        }
        seen.push(&to_be.digest);
        let reader = Checked {
            inner: Box::new(Later { image: image.clone(), layer: layer.clone(), open: None }),
            hasher: Some(Hasher::default()),
            left: to_be.size,
            digest: to_be.digest.clone(),
        };
        add(&blob(&to_be.digest), to_be.size, Box::new(reader));
    }
    Ok(Box::new(tar.chain(Cursor::new(vec![0; 1024]))))
}

/// A layer that is opened when its turn comes.
struct Later {
    image: Image,
    layer: super::source::Layer,
    open: Option<Box<dyn Read + Send>>,
}

impl Read for Later {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.open.is_none() {
            self.open = Some(self.image.read_layer(&self.layer).map_err(io::Error::other)?);
        }
        self.open.as_mut().map_or(Ok(0), |open| open.read(buffer))
    }
}

/// Fails at its end when what was read is not what it should be.
struct Checked {
    inner: Box<dyn Read + Send>,
    hasher: Option<Hasher>,
    left: u64,
    digest: Digest,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..want])?;
        if count == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        if self.left == 0
            && let Some(hasher) = self.hasher.take()
        {
            let is = hasher.finish();
            if is != self.digest {
                return Err(io::Error::other(format!(
                    "a layer hashes to {is}, it is said to be {}: one of them is damaged",
                    self.digest
                )));
            }
        }
        Ok(count)
    }
}

/// gzip of what a reader gives, made on other threads.
struct Packed {
    pieces: Receiver<Vec<u8>>,
    piece: Cursor<Vec<u8>>,
    result: Option<std::thread::JoinHandle<io::Result<()>>>,
    fault: Option<io::Error>,
    length: u64,
}

impl Packed {
    fn start(mut plain: Box<dyn Read + Send>, read: Arc<AtomicU64>) -> io::Result<Self> {
        let (sender, pieces) = sync_channel(2);
        let pool = Pool::start()?;
        let work = move || {
            let seen = |block: &[u8]| {
                read.fetch_add(block.len() as u64, Ordering::Relaxed);
            };
            pool.compress(Method::Gzip, &mut plain, seen, |piece| sender.send(piece).is_ok())
        };
        let result = Some(std::thread::Builder::new().name("archive".to_owned()).spawn(work)?);
        Ok(Self { pieces, piece: Cursor::default(), result, fault: None, length: 0 })
    }
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 {
                self.length += count as u64;
                return Ok(count);
            }
            match self.pieces.recv() {
                Ok(piece) => self.piece = Cursor::new(piece),
                Err(_) => {
                    let ended = self.result.take().map_or(Ok(Ok(())), std::thread::JoinHandle::join);
                    let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the compressor stopped")));
                    if let Err(error) = ended {
                        let told = io::Error::other("the source is damaged");
                        self.fault = Some(error);
                        return Err(told);
                    }
                    return Ok(0);
                }
            }
        }
    }
}

/// Keeps the first bytes.
struct Bounded<'a>(&'a mut Vec<u8>);

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_WORDS.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(&bytes[..room]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_uses() {
        let name = |given: &str| Node::parse(given).unwrap().map(|node| node.name);
        assert_eq!(name("ssh://root@node/app:t").unwrap(), "docker.io/library/app:t");
        assert_eq!(name("ssh://root@node:2222/shop/app:t").unwrap(), "docker.io/shop/app:t");
        assert_eq!(name("ssh://node/10.0.0.5:3000/shop/app:t").unwrap(), "10.0.0.5:3000/shop/app:t");
        assert!(Node::parse("git.example.org/shop/app:t").is_none());
        for wrong in ["ssh://node", "ssh://node/app", "ssh:///app:t", "ssh://node/App:t"] {
            assert!(Node::parse(wrong).unwrap().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_is_one_word_for_the_shell() {
        let command = command(Some("ctr --address /run/it's.sock"), "a/b:t");
        let words = shlex::split(&command).unwrap();
        assert_eq!(words[..2], ["sh", "-c"]);
        assert_eq!(words.len(), 3);
    }
}
