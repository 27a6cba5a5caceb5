//! What a test can do with a server whether it is the stand-in or a real Gitea.

use crate::forge::Forge;
use crate::state::Status;

/// Anything that goes wrong between a test and a server.
pub type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// A job as a person sees it on the page of its run.
#[derive(Debug, Clone)]
pub struct JobSeen {
    /// Identifies the job on its server.
    pub id: i64,
    /// Name.
    pub name: String,
    /// State.
    pub status: Status,
    /// The steps, with "Set up job" first and "Complete job" last: name and state.
    pub steps: Vec<(String, Status)>,
}

impl JobSeen {
    /// The state of the first step of that name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<Status> {
        self.steps.iter().find(|(known, _)| known == name).map(|(_, status)| *status)
    }
}

/// A server that holds repositories and gives jobs to runners.
pub trait Server {
    /// Address of the instance.
    fn url(&self) -> String;

    /// The token that registers runners.
    fn registration_token(&self) -> String;

    /// Makes a public repository of [`USER`](crate::USER) and puts a secret and a variable in it.
    ///
    /// # Errors
    /// When the server refuses.
    fn make_repository(
        &self,
        name: &str,
        secrets: &[(&str, &str)],
        vars: &[(&str, &str)],
    ) -> Result<(), Trouble>;

    /// Pushes files to `main` of a repository; answers the commit.
    ///
    /// # Errors
    /// When git fails.
    fn push(&self, repository: &str, files: &[(&str, &str)]) -> Result<String, Trouble>;

    /// The jobs of the only run of a commit; none while there is no run.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    fn jobs(&self, repository: &str, sha: &str) -> Result<Vec<JobSeen>, Trouble>;

    /// The rows of a job, as far as the server has them.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    fn rows(&self, repository: &str, job: i64) -> Result<Vec<String>, Trouble>;

    /// Cancels the run of a commit.
    ///
    /// # Errors
    /// When the server refuses.
    fn cancel(&self, repository: &str, sha: &str) -> Result<(), Trouble>;

    /// Takes the server down.
    ///
    /// # Errors
    /// When it does not go.
    fn stop(&self) -> Result<(), Trouble>;

    /// Brings it up again, at the same address and with the same data.
    ///
    /// # Errors
    /// When it does not come.
    fn restart(&self) -> Result<(), Trouble>;
}

impl Server for Forge {
    fn url(&self) -> String {
        Self::url(self)
    }

    fn registration_token(&self) -> String {
        Self::registration_token(self)
    }

    fn make_repository(
        &self,
        name: &str,
        secrets: &[(&str, &str)],
        vars: &[(&str, &str)],
    ) -> Result<(), Trouble> {
        self.repository(name)?;
        for (name, value) in secrets {
            self.set_secret(name, value);
        }
        for (name, value) in vars {
            self.set_var(name, value);
        }
        Ok(())
    }

    fn push(&self, repository: &str, files: &[(&str, &str)]) -> Result<String, Trouble> {
        Ok(self.repository(repository)?.push(files)?)
    }

    fn jobs(&self, repository: &str, sha: &str) -> Result<Vec<JobSeen>, Trouble> {
        let run = self.runs().into_iter().find(|run| run.repository == repository && run.sha == sha);
        let jobs = run.map(|run| run.jobs).unwrap_or_default();
        Ok(jobs
            .into_iter()
            .map(|job| JobSeen {
                id: job.id,
                name: job.name,
                status: job.status,
                steps: job.steps.into_iter().map(|step| (step.name, step.status)).collect(),
            })
            .collect())
    }

    fn rows(&self, _repository: &str, job: i64) -> Result<Vec<String>, Trouble> {
        Ok(self.text(job))
    }

    fn cancel(&self, repository: &str, sha: &str) -> Result<(), Trouble> {
        for run in self.runs().iter().filter(|run| run.repository == repository && run.sha == sha) {
            Self::cancel(self, run.id);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), Trouble> {
        self.go_down();
        Ok(())
    }

    fn restart(&self) -> Result<(), Trouble> {
        self.come_up();
        Ok(())
    }
}
