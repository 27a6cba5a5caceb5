//! What can be made to go wrong, by method and count.

use std::time::Duration;

/// A method of the runner protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Is this a Gitea with Actions?
    Ping,
    /// A new runner.
    Register,
    /// A runner says what it is.
    Declare,
    /// A runner asks for a task.
    FetchTask,
    /// State of a task, and its heartbeat.
    UpdateTask,
    /// Rows of a task's log.
    UpdateLog,
}

impl Method {
    /// From the last part of the path.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "ping.v1.PingService/Ping" => Self::Ping,
            "runner.v1.RunnerService/Register" => Self::Register,
            "runner.v1.RunnerService/Declare" => Self::Declare,
            "runner.v1.RunnerService/FetchTask" => Self::FetchTask,
            "runner.v1.RunnerService/UpdateTask" => Self::UpdateTask,
            "runner.v1.RunnerService/UpdateLog" => Self::UpdateLog,
            _ => return None,
        })
    }
}

/// Something that goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed before anything is done.
    Refuse,
    /// Nothing happens for that long, then the connection is closed.
    Stall(Duration),
    /// The request is carried out, then the connection is closed without a reply.
    DropReply,
    /// A proxy answers with this status and a page in HTML; nothing is done.
    Html(u16),
    /// The request is carried out, and the reply ends in the middle.
    TornReply,
    /// A proxy says 429 and how many seconds to wait; nothing is done.
    TooMany(u64),
    /// The request is carried out and answered that much later.
    Slow(Duration),
    /// UpdateLog: that many of the last rows are lost before the request is looked at.
    ForgetRows(usize),
    /// UpdateLog: the log is sealed before the request is looked at.
    SealEarly,
}

/// Faults that wait for their request.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<(Method, Fault, usize)>);

impl Faults {
    pub(crate) fn arm(&mut self, method: Method, fault: Fault, times: usize) {
        if times > 0 {
            self.0.push((method, fault, times));
        }
    }

    /// The fault for the next request of `method`, in the order in which they were armed.
    pub(crate) fn take(&mut self, method: Method) -> Option<Fault> {
        let position = self.0.iter().position(|(of, _, _)| *of == method)?;
        let (_, fault, times) = &mut self.0[position];
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            self.0.remove(position);
        }
        Some(fault)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// How many requests will still meet a fault.
    pub(crate) fn left(&self) -> usize {
        self.0.iter().map(|(_, _, times)| times).sum()
    }
}
