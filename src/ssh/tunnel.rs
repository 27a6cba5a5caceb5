//! A port on loopback whose connections come out at the far side: at one place, or, as a SOCKS proxy, where each of them
//! wants to. A connection to the host that was lost is made anew when somebody next comes in.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::{Error, Options, Session, Target, socks};

/// A listening port. Closed when this is dropped; connections that came through it end then, too.
pub struct Tunnel {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    target: Target,
    options: Options,
    /// Where connections go; `None`: where each says.
    place: Option<(String, u16)>,
    session: Mutex<Arc<Session>>,
    rebuilt: AtomicU32,
    trouble: StdMutex<Option<String>>,
}

impl Tunnel {
    /// Listens on a free port of 127.0.0.1. What comes in goes to `place` as seen from the far side of `session`; without
    /// one each connection says where to, by SOCKS. `target` and `options` are for the case that the session is lost.
    pub(super) async fn open(
        session: Arc<Session>,
        target: Target,
        options: Options,
        place: Option<(String, u16)>,
    ) -> Result<Self, Error> {
        let local = |source| Error::Local { what: "a port on 127.0.0.1", source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(local)?;
        let address = listener.local_addr().map_err(local)?;
        let state = Arc::new(State {
            target,
            options,
            place,
            session: Mutex::new(session),
            rebuilt: AtomicU32::new(0),
            trouble: StdMutex::new(None),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often the connection to the host was lost and made anew.
    #[must_use]
    pub fn rebuilt(&self) -> u32 {
        self.state.rebuilt.load(Ordering::Relaxed)
    }

    /// What last went wrong.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of files or the like: the next one may find some.
                let Ok((mut stream, _)) = accepted else {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let state = Arc::clone(&state);
                running.spawn(async move {
                    // The stream is ended last: who sees its end may ask what went wrong.
                    if let Err(error) = carry(&mut stream, &state).await {
                        *state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    }
                });
            }
            Some(_) = running.join_next() => {}
        }
    }
}

async fn carry(stream: &mut TcpStream, state: &State) -> Result<(), Error> {
    let _ = stream.set_nodelay(true);
    let session = state.session().await?;
    let mut channel = match &state.place {
        Some((host, port)) => session.direct(host, *port).await?.into_stream(),
        None => {
            let Some((host, port)) = socks::wanted(stream).await else { return Ok(()) };
            let opened = session.direct(&host, port).await;
            let _ = socks::answer(stream, opened.is_ok()).await;
            opened?.into_stream()
        }
    };
    // Either side may end it at any time; that is how connections end.
    let _ = copy_bidirectional(stream, &mut channel).await;
    match session.end() {
        Some(message) => Err(Error::Lost { host: session.host().to_owned(), message }),
        None => Ok(()),
    }
}

impl State {
    /// The connection to the host, made anew if it was lost.
    async fn session(&self) -> Result<Arc<Session>, Error> {
        let mut session = self.session.lock().await;
        if session.is_closed() {
            *session = Arc::new(Session::connect(&self.target, &self.options).await?);
            self.rebuilt.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Arc::clone(&session))
    }
}
