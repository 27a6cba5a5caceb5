//! One deployment from beginning to end: looked at before, run, watched, explained, taken back.

mod aftermath;
mod proof;

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use self::aftermath::Known;
use super::claim::{Claim, Refused};
use super::diagnosis::{Cause, Kind, diagnose_helm};
use super::evidence::{COMBINED, Evidence, alike};
use super::helm::{Helm, Revision};
use super::hidden::Hidden;
use super::kubectl::Kubectl;
use super::objects::Event;
use super::place::Place;
use super::precheck::{self, Before};
use super::process::Running;
use super::release::{self, Lock};
use super::remote::{Detached, Sent};
use super::rollout::{Changes, Rollout};
use super::smoke::Answered;
use super::stuck::Stuck;
use super::verdict::Watchful;
use super::{Error, Request};

/// How long to wait between two looks at the pods, at first. A kubectl costs a tenth of a second of CPU time.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How long to wait between two looks at the pods of a rollout that takes its time.
const LOOK_LATER: Duration = Duration::from_millis(1500);
/// The same where a look costs no program start.
const QUICK_LOOK: Duration = Duration::from_millis(400);
/// How often a signal is looked for.
const SIGNAL_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether helm is gone, once it says no more.
const END_EVERY: Duration = Duration::from_millis(2);
/// How many of helm's last lines are kept.
const HELM_LINES: usize = 40;
/// How long a helm that was asked to end may take to mark its release.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// When events are followed: a deployment that is done before that needs none.
const EVENTS_AFTER: Duration = Duration::from_secs(2);

/// How a deployment ended.
#[derive(Debug)]
pub enum Outcome {
    /// All is ready, and stayed so.
    Deployed(Box<Deployed>),
    /// It failed, and here is why.
    Failed(Box<Failed>),
    /// A signal came; helm was told and has ended.
    Cancelled {
        /// In which state the release is now, if that could be asked.
        state: String,
    },
}

/// A release that is ready.
#[derive(Debug)]
pub struct Deployed {
    /// The new revision.
    pub revision: u64,
    /// Its workloads and pods.
    pub rollout: Rollout,
    /// How long it took.
    pub took: Duration,
    /// How long the pods were watched after that.
    pub settled: Duration,
    /// The application's answer, if it was asked.
    pub answered: Option<Answered>,
}

/// A deployment that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub cause: Cause,
    /// What the cause was told from.
    pub evidence: Evidence,
    /// What changed against the last good revision.
    pub changes: Vec<String>,
    /// What was done about it.
    pub undone: Option<String>,
    /// In which state the release is now.
    pub state: String,
    /// How long it took until it was known.
    pub took: Duration,
    /// Whether cause and evidence were said already, before anything was done about it.
    pub(super) told: bool,
}

impl Failed {
    fn new(cause: Cause, took: Duration, state: String) -> Self {
        let (evidence, changes) = (Evidence::default(), Vec::new());
        Self { cause, evidence, changes, undone: None, state, took, told: false }
    }
}

enum News {
    Helm(String),
    HelmEnded,
    Look(Rollout),
    Event(Event),
}

/// helm at work.
enum Run {
    Here(Running),
    There(Detached),
}

impl Run {
    fn signal(&mut self, kill: bool) {
        match (self, kill) {
            (Self::Here(running), false) => running.ask_to_end(),
            (Self::Here(running), true) => running.kill(),
            (Self::There(running), kill) => running.signal(if kill { "KILL" } else { "TERM" }),
        }
    }

    fn ended(&mut self) -> Result<Option<bool>, Error> {
        match self {
            Self::Here(running) => Ok(running.ended()?.map(|status| status.success())),
            Self::There(running) => Ok(running.ended()),
        }
    }
}

/// How helm ended.
struct End {
    success: bool,
    cancelled: bool,
    /// Why it was of no use to wait. It was said already.
    hopeless: Option<Known>,
    /// helm's last words.
    words: String,
}

/// All that a deployment works with.
struct Deployment<'a> {
    request: &'a Request,
    helm: &'a Helm,
    kubectl: Kubectl,
    interrupted: &'a AtomicBool,
    sent: Option<Sent>,
    hooks: Vec<String>,
    /// The values of the chart's Secrets.
    hidden: Hidden,
    /// Those of the namespace besides: asked for when something went wrong.
    all_hidden: OnceLock<Hidden>,
    began: Instant,
}

/// Deploys, and calls `say` with each line of progress. When `interrupted` becomes true helm is asked to end, and
/// waited for: a helm that is killed leaves its release locked.
///
/// # Errors
/// If it could not be tried: a missing program, an argument that cannot be.
pub fn deploy(
    request: &mut Request,
    helm: &Helm,
    interrupted: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    request.check()?;
    let kubectl = Kubectl::find(request)?;
    say(&format!(
        "release {} in namespace {}: helm {} installs or upgrades it from {}",
        request.release,
        request.namespace,
        helm.version(),
        request.chart
    ));
    let sent = match request.access.place.clone() {
        Place::Here => None,
        Place::There(far) => Some(Sent::send(&far, request)?),
    };
    let began = Instant::now();
    let request: &Request = request;
    let (hooks, hidden) = (Vec::new(), Hidden::default());
    let all_hidden = OnceLock::new();
    let mut deployment =
        Deployment { request, helm, kubectl, interrupted, sent, hooks, hidden, all_hidden, began };
    let mut claim = match Claim::take(request, request.timeout, interrupted, say) {
        Ok(claim) => claim,
        Err(Refused::Held(who)) => return Ok(deployment.refused(held(&who, request))),
        Err(Refused::Interrupted) => return Ok(deployment.cancelled("nothing was changed")),
    };
    deployment.run(&mut claim, say)
}

fn held(who: &str, request: &Request) -> Cause {
    Cause::new(
        Kind::Locked,
        format!("release {} is held by somebody else: {who}", request.release),
        "wait until it has ended; if there is nobody (a helm that was killed leaves this behind), deploy with \
         --break-lock",
    )
}

impl Deployment<'_> {
    fn run(&mut self, claim: &mut Claim, say: &mut dyn FnMut(&str)) -> Result<Outcome, Error> {
        let Before { history, objects, hooks, has_early_hooks, hidden, problem, notes } =
            precheck::look(self.helm, &self.kubectl, self.request);
        self.hooks = hooks;
        self.hidden = hidden;
        let history = match history {
            Ok(history) => history,
            // What an earlier one left is still to be put in order.
            Err(error) => return Ok(self.unreachable(&error)),
        };
        notes.iter().for_each(|note| say(note));
        let left = claim.left.take();
        let unlocked = release::unlock(
            history,
            left.as_ref(),
            self.hooks.len(),
            (self.helm, &self.kubectl),
            self.request,
            self.interrupted,
            say,
        )?;
        let before = match unlocked {
            Lock::Free(history) => history,
            Lock::Held(who) => return Ok(self.refused(held(&who, self.request))),
            Lock::Interrupted => return Ok(self.cancelled("nothing was changed")),
        };
        if let Some(problem) = problem {
            claim.end();
            return Ok(self.refused(problem));
        }
        if self.interrupted.load(Ordering::SeqCst) {
            claim.end();
            return Ok(self.cancelled("nothing was changed"));
        }
        claim.begin(before.first().map_or(0, |newest| newest.revision));
        let watchful = Watchful::new(&objects, self.request.restarts, has_early_hooks);
        let first = Rollout::of(&self.request.release, &objects, &self.hooks);
        let (send, news) = mpsc::channel();
        let mut run = claim.shared(|| self.start(&send))?;
        let end = self.follow(&mut run, &before, (send, news), first, watchful, say)?;
        drop(run);
        let outcome = self.conclude(&before, end, say);
        // A release that is still locked is the next one's to free: the note says whose it is.
        if let Ok((_, false)) = &outcome {
            claim.end();
        }
        outcome.map(|(outcome, _)| outcome)
    }

    fn start(&self, send: &Sender<News>) -> Result<Run, Error> {
        let (lines, end) = (send.clone(), send.clone());
        let line = move |line| drop(lines.send(News::Helm(line)));
        let ended = move || drop(end.send(News::HelmEnded));
        let mut command = self.helm.upgrade(self.request);
        match &self.sent {
            None => Ok(Run::Here(Running::start(&mut command, line, ended)?)),
            Some(sent) => Ok(Run::There(sent.start(&command, line, ended)?)),
        }
    }

    /// Passes on what helm and the watchers say until helm has ended, or it is of no use to wait for it.
    fn follow(
        &self,
        run: &mut Run,
        before: &[Revision],
        (send, news): (Sender<News>, Receiver<News>),
        first: Rollout,
        mut watchful: Watchful,
        say: &mut dyn FnMut(&str),
    ) -> Result<End, Error> {
        let watcher = self.watch(send.clone());
        let mut events = None;
        let mut changes = Changes::default();
        changes.since_last(&first);
        let mut rollout = first;
        let mut words: VecDeque<String> = VecDeque::new();
        let (mut cancelled, mut hopeless) = (false, None);
        let mut told: Option<Instant> = None;
        let mut rebuilt = self.request.access.rebuilt();
        let mut silent = false;
        // Warnings that differ in nothing but the name of the pod that was to be made are one.
        let mut warned = HashSet::new();
        let success = loop {
            if self.request.access.rebuilt() != rebuilt {
                rebuilt = self.request.access.rebuilt();
                say("the SSH connection was lost, and is made anew");
            }
            if self.interrupted.swap(false, Ordering::SeqCst) {
                cancelled = true;
                say("asked to end: helm is told and may finish what it must");
                run.signal(false);
                told.get_or_insert_with(Instant::now);
            }
            if told.is_some_and(|told| told.elapsed() > END_PATIENCE) {
                say("helm does not end: it is killed, and its release freed");
                run.signal(true);
                told = None;
            }
            match news.recv_timeout(if silent { END_EVERY } else { SIGNAL_EVERY }) {
                Ok(News::Helm(mut line)) => {
                    self.hidden.hide(&mut line);
                    // What it says when it is told to stop is no news.
                    if is_news(&line) && hopeless.is_none() {
                        say(&format!("helm: {}", plain(&line)));
                    }
                    if words.len() == HELM_LINES {
                        words.pop_front();
                    }
                    words.push_back(line);
                }
                Ok(News::Look(look)) => {
                    for mut line in changes.since_last(&look) {
                        self.hidden.hide(&mut line);
                        say(&line);
                    }
                    rollout = look;
                    if let Some(why) = watchful.hopeless(&rollout)
                        && hopeless.is_none()
                        && told.is_none()
                    {
                        // Before anything ends, because ending is the first step of undoing.
                        hopeless = Some(self.given_up(before, why, say));
                        run.signal(false);
                        told = Some(Instant::now());
                    }
                    if events.is_none() && self.began.elapsed() > EVENTS_AFTER {
                        let send = send.clone();
                        events = self.kubectl.follow_events(move |event| drop(send.send(News::Event(event))));
                    }
                }
                Ok(News::Event(event)) => {
                    if let Some(mut line) = told_of(&event, &rollout)
                        && warned.insert(alike(&line))
                    {
                        self.hidden.hide(&mut line);
                        say(&line);
                    }
                }
                Ok(News::HelmEnded) => silent = true,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(success) = run.ended()? {
                // What is still in the pipe; a grandchild may keep it open for ever.
                while !silent {
                    match news.recv_timeout(SIGNAL_EVERY) {
                        Ok(News::Helm(mut line)) => {
                            self.hidden.hide(&mut line);
                            if is_news(&line) && hopeless.is_none() {
                                say(&format!("helm: {line}"));
                            }
                            words.push_back(line);
                        }
                        Ok(News::HelmEnded) | Err(_) => silent = true,
                        Ok(News::Look(_) | News::Event(_)) => {}
                    }
                }
                break success;
            }
        };
        // Dropping its end stops the watcher at its next look; nobody waits for it.
        drop((watcher, events));
        let words: Vec<String> = words.into();
        Ok(End { success: success && hopeless.is_none(), cancelled, hopeless, words: words.join("\n") })
    }

    /// Looks at the pods again and again, in a thread of its own, until the returned sender is dropped.
    fn watch(&self, news: Sender<News>) -> Sender<()> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (kubectl, hooks) = (self.kubectl.clone(), self.hooks.clone());
        let release = self.request.release.clone();
        thread::spawn(move || {
            let began = Instant::now();
            let mut stuck = Stuck::default();
            loop {
                let pause = match kubectl.is_quick() {
                    true => QUICK_LOOK,
                    false => (began.elapsed() / 10).clamp(LOOK_SOON, LOOK_LATER),
                };
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                // An API server that does not answer is helm's to complain about.
                let Ok(objects) = kubectl.workloads() else { continue };
                let mut rollout = Rollout::of(&release, &objects, &hooks);
                stuck.look(&mut rollout, &kubectl);
                if news.send(News::Look(rollout)).is_err() {
                    return;
                }
            }
        });
        stop
    }

    /// What helm's end means. The second answer says whether the release is still locked.
    fn conclude(
        &self,
        before: &[Revision],
        end: End,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Outcome, bool), Error> {
        let took = self.began.elapsed();
        let End { success, cancelled, hopeless, words } = end;
        if success {
            return self.prove(before, took, say);
        }
        if cancelled {
            let (state, locked) = self.state_after(say);
            return Ok((Outcome::Cancelled { state }, locked));
        }
        if let Some(mut known) = hopeless {
            known.evidence.helm = words;
            let (failed, locked) = self.failed(before, known, say);
            return Ok((Outcome::Failed(Box::new(failed)), locked));
        }
        // Where helm got nowhere, the pods are those of an older revision and prove nothing.
        let known = match diagnose_helm(&words) {
            Some(cause) => Known {
                cause: self.expired(cause),
                evidence: Evidence { helm: words, ..Evidence::default() },
                changes: None,
                took,
                told: false,
            },
            None => Known { took, ..self.looked_into(before, words, &mut |_| {}) },
        };
        let Known { cause, evidence, .. } = &known;
        let cause = match self.request.access.trouble() {
            Some(trouble)
                if matches!(cause.kind, Kind::Unreachable | Kind::Unknown)
                    || evidence.incomplete.is_some() =>
            {
                Cause::new(
                    Kind::Connection,
                    format!("the way to the cluster was lost: {trouble}; helm said: {}", cause.sentence),
                    "see that the host stays reachable over SSH, then deploy again; --remote runs helm there, where it \
                 does not depend on the connection",
                )
            }
            _ => cause.clone(),
        };
        let (failed, locked) = self.failed(before, Known { cause, ..known }, say);
        Ok((Outcome::Failed(Box::new(failed)), locked))
    }
}

/// helm 4 logs each step; what is of use to people are its warnings and its last word, which it says twice.
fn is_news(line: &str) -> bool {
    let idle = ["level=DEBUG", "level=INFO", "msg=\"upgrade failed\"", "msg=\"install failed\""];
    !line.is_empty() && !idle.iter().any(|words| line.contains(words))
}

/// A warning of the API server without what a logger puts around it: `I1127 22:47:26.690802 29097 warnings.go:107] "…"`.
fn plain(line: &str) -> Cow<'_, str> {
    match line.split_once("] \"Warning: ").and_then(|(_, rest)| rest.strip_suffix('"')) {
        Some(words) => Cow::Owned(format!("Warning: {}", words.replace("\\\"", "\""))),
        None => Cow::Borrowed(line),
    }
}

/// An event as one line, if it is about the release and says more than the states do.
fn told_of(event: &Event, rollout: &Rollout) -> Option<String> {
    let about = &event.involved_object;
    let of_use =
        event.kind == "Warning" || matches!(event.reason.as_str(), "Pulling" | "Pulled" | "TriggeredScaleUp");
    // BackOff and Failed only repeat what the pod's state says.
    let repeats = matches!(event.reason.as_str(), "BackOff" | "Failed" | "FailedScheduling");
    // Each repetition counts up; the first one is news.
    let first = event.count.is_none_or(|count| count == 1) && !event.message.starts_with(COMBINED);
    (of_use && !repeats && first && rollout.has(&about.kind, &about.name)).then(|| {
        let message = event.message.trim().replace('\n', " ");
        format!("{}/{}: {}: {message}", about.kind.to_lowercase(), about.name, event.reason)
    })
}
