//! What is found out about a source on threads of their own: while the registry is asked, what it holds; and beside all
//! that is done with the parts of a layer, whether the whole of it is what its image says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::push::Layering;
use super::source::{Anatomy, Image, Mark, Names, Wanted, WholeHash};
use super::{Error, relayer};

/// A source that is being opened and, where its layer is to be split, looked into.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    found: oneshot::Receiver<Result<Looked, Error>>,
    looked: Option<Looked>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) image: Image,
    /// What the layer holds that is to be split, if one is.
    pub(super) anatomy: Option<Anatomy>,
    /// Whether that layer is what the configuration says. Others are hashed on their way.
    pub(super) check: Option<Check>,
}

impl Look {
    /// Starts it. `name` chooses one of several images; `marks` are those of an image that may be much the same.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        path: &Path,
        name: Option<&str>,
        layering: Layering,
        marks: Vec<Mark>,
    ) -> Result<Self, Error> {
        let (tell, found) = oneshot::channel();
        let (own, name) = (path.to_owned(), name.map(str::to_owned));
        let run = move || {
            // Nobody wants it when the registry could not be opened.
            let _ = tell.send(look(&own, name.as_deref(), layering, marks));
        };
        spawn("look", path, run)?;
        Ok(Self { path: path.to_owned(), found, looked: None })
    }

    /// Waits for something else, as long as the source is well.
    ///
    /// # Errors
    /// What `other` says, or what is wrong with the source if that comes first.
    pub async fn beside<T>(&mut self, other: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut other = std::pin::pin!(other);
        tokio::select! {
            biased;
            looked = wait(&mut self.found, &self.path) => self.looked = Some(looked?),
            result = &mut other => return result,
        }
        other.await
    }

    /// What was found.
    ///
    /// # Errors
    /// When the source is not there, lies, or cannot be split though it must be.
    pub(super) async fn end(mut self) -> Result<Looked, Error> {
        match self.looked.take() {
            Some(looked) => Ok(looked),
            None => wait(&mut self.found, &self.path).await,
        }
    }
}

async fn wait(found: &mut oneshot::Receiver<Result<Looked, Error>>, path: &Path) -> Result<Looked, Error> {
    found.await.unwrap_or_else(|_| Err(Error::stopped(path)))
}

fn look(path: &Path, name: Option<&str>, layering: Layering, marks: Vec<Mark>) -> Result<Looked, Error> {
    let image = Image::open(path, Wanted { name, anatomy: layering != Layering::Keep })?;
    let is_split = match layering {
        Layering::Keep => false,
        Layering::Auto => image.layers.len() == 1,
        Layering::StorePaths => true,
    };
    if !is_split {
        return Ok(Looked { image, anatomy: None, check: None });
    }
    let mut check = Check::start(image.clone(), marks)?;
    match image.anatomy(&mut check.names)? {
        Ok(anatomy) => Ok(Looked { image, anatomy: Some(anatomy), check: Some(check) }),
        Err(why) if layering == Layering::StorePaths => Err(relayer::cannot(&image, &why)),
        Err(_) => Ok(Looked { image, anatomy: None, check: None }),
    }
}

/// The hashing of a whole layer. It stops when this is dropped.
#[derive(Debug)]
pub(super) struct Check {
    image: Image,
    hashed: oneshot::Receiver<Result<WholeHash, Error>>,
    stop: Arc<AtomicBool>,
    /// What came before its places, as it was found by whoever looks into the layer.
    names: Names,
    /// What it came to.
    marks: Option<Vec<Mark>>,
}

impl Check {
    /// Starts it.
    ///
    /// # Errors
    /// When no thread can be started.
    fn start(image: Image, marks: Vec<Mark>) -> Result<Self, Error> {
        let stop = Arc::default();
        let hashed = hash(&image, marks, &stop)?;
        Ok(Self { image, hashed, stop, names: Names::default(), marks: None })
    }

    /// The marks of the layer, once it is known to be what the configuration says.
    ///
    /// # Errors
    /// When the layer has another digest than the configuration says, or cannot be read.
    pub(super) async fn end(&mut self) -> Result<&[Mark], Error> {
        let marks = match self.marks.take() {
            Some(marks) => marks,
            None => self.wait().await?,
        };
        Ok(self.marks.insert(marks))
    }

    async fn wait(&mut self) -> Result<Vec<Mark>, Error> {
        loop {
            let hashed = (&mut self.hashed).await;
            let hashed = hashed.unwrap_or_else(|_| Err(Error::stopped(self.image.path())))?;
            if let Some(marks) = hashed.marks(&self.names) {
                return Ok(marks);
            }
            // It is not what it was before, though it looked so.
            self.hashed = hash(&self.image, Vec::new(), &self.stop)?;
        }
    }
}

fn hash(
    image: &Image,
    marks: Vec<Mark>,
    stop: &Arc<AtomicBool>,
) -> Result<oneshot::Receiver<Result<WholeHash, Error>>, Error> {
    let (tell, hashed) = oneshot::channel();
    let (own, stop) = (image.clone(), Arc::clone(stop));
    let run = move || {
        let _ = tell.send(own.check_whole(&marks, &stop));
    };
    spawn("check", image.path(), run)?;
    Ok(hashed)
}

impl Drop for Check {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn spawn(name: &str, path: &Path, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(drop).map_err(|error| Error::io(path, error))
}
