//! What can go wrong with a cluster, and which of it is worth trying again. Used by this folder's loop of attempts, and by the stores for what is
//! left of it.

use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind as Setup, DbError, ExecutionError, MetadataError, NewSessionError,
    PrepareError, RequestAttemptError, UseKeyspaceError,
};

/// What can go wrong with a cluster.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot be meant so.
    #[error("{0}")]
    Settings(String),
    /// The cluster did not do it in time. What was asked may yet have been done.
    #[error("the cluster does not answer: {0}")]
    Unavailable(String),
    /// The cluster refuses, and would again.
    #[error("the cluster refuses: {0}")]
    Refused(String),
    /// The keyspace has no tables, or others than this build works with.
    #[error("{0}")]
    Schema(String),
    /// What a table holds is not what it is to hold.
    #[error("what is stored is not of the form it should be: {0}")]
    Form(String),
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed but the cluster's state.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Why no node was reached at the start, with the settings that say how. The driver gives up by itself, after 5 s for each node.
pub(super) fn of_connecting(nodes: &[String], error: &NewSessionError) -> Error {
    let nodes = nodes.join(",");
    let last = match error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken { last_connection_error })) => {
            Some(last_connection_error)
        }
        _ => None,
    };
    match last {
        Some(ConnectionError::ConnectionSetupRequestError(setup))
            if matches!(setup.error, Setup::MissingAuthentication | Setup::DbError(DbError::AuthenticationError, _)) =>
        {
            let told = match &setup.error {
                Setup::DbError(_, told) => told.as_str(),
                _ => "one is needed",
            };
            Error::Settings(format!("{nodes}: the nodes refuse the login (scylla.username, CONTRAIL_SCYLLA_PASSWORD): {told}"))
        }
        Some(ConnectionError::IoError(error)) if error.get_ref().is_some_and(|inner| inner.is::<openssl::ssl::Error>()) => {
            Error::Settings(format!("{nodes}: no encrypted connection to the nodes (scylla.tls, scylla.ca_file): {error}"))
        }
        _ => Error::Unavailable(format!("{nodes}: no node answers as scylla.tls has it: {error}")),
    }
}

/// What to do after an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Try again, later and with less at once.
    Overload,
    /// Try again.
    Passing,
    /// The connection broke, or there is none: the node may begin anew. Try again where that makes no difference.
    Cut,
    /// It would be refused again.
    Lasting,
}

/// The class of an attempt's error.
pub(super) fn class_of(error: &ExecutionError) -> Class {
    match error {
        ExecutionError::RequestTimeout(_) => Class::Overload,
        ExecutionError::LastAttemptError(error) => class_of_attempt(error),
        ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt }) => class_of_attempt(first_attempt),
        ExecutionError::UseKeyspaceError(UseKeyspaceError::RequestTimeout(_)) => Class::Overload,
        ExecutionError::UseKeyspaceError(UseKeyspaceError::RequestError(error)) => class_of_attempt(error),
        ExecutionError::UseKeyspaceError(_) | ExecutionError::BadQuery(_) => Class::Lasting,
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) => Class::Cut,
        _ => Class::Passing,
    }
}

fn class_of_attempt(error: &RequestAttemptError) -> Class {
    match error {
        RequestAttemptError::DbError(error, _) => class_of_answer(error),
        RequestAttemptError::UnableToAllocStreamId => Class::Overload,
        RequestAttemptError::BrokenConnectionError(_) => Class::Cut,
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => Class::Lasting,
        _ => Class::Passing,
    }
}

/// The class of what a node answered.
fn class_of_answer(error: &DbError) -> Class {
    match error {
        DbError::Overloaded | DbError::ReadTimeout { .. } | DbError::WriteTimeout { .. } | DbError::RateLimitReached { .. } => Class::Overload,
        // A write failure (0x1500) is also what a replica says that does not know a table yet.
        DbError::Unavailable { .. }
        | DbError::IsBootstrapping
        | DbError::TruncateError
        | DbError::ReadFailure { .. }
        | DbError::WriteFailure { .. }
        | DbError::Unprepared { .. }
        | DbError::ServerError => Class::Passing,
        DbError::SyntaxError
        | DbError::Invalid
        | DbError::AlreadyExists { .. }
        | DbError::FunctionFailure { .. }
        | DbError::AuthenticationError
        | DbError::Unauthorized
        | DbError::ConfigError
        | DbError::ProtocolError => Class::Lasting,
        _ => Class::Passing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scylla::errors::WriteType;
    use scylla::statement::Consistency;

    use super::*;

    #[test]
    fn each_error_has_its_class() {
        let of = |error: DbError| class_of(&ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, String::new())));
        let consistency = Consistency::LocalQuorum;
        let write_type = WriteType::Simple;
        assert_eq!(class_of(&ExecutionError::RequestTimeout(Duration::from_secs(5))), Class::Overload);
        assert_eq!(class_of(&ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId)), Class::Overload);
        assert_eq!(of(DbError::Overloaded), Class::Overload);
        assert_eq!(of(DbError::WriteTimeout { consistency, received: 1, required: 2, write_type: write_type.clone() }), Class::Overload);
        assert_eq!(of(DbError::Unavailable { consistency, required: 2, alive: 1 }), Class::Passing);
        assert_eq!(of(DbError::WriteFailure { consistency, received: 1, required: 2, numfailures: 1, write_type }), Class::Passing);
        assert_eq!(of(DbError::ServerError), Class::Passing);
        for lasting in [DbError::Invalid, DbError::SyntaxError, DbError::Unauthorized, DbError::ConfigError, DbError::AuthenticationError] {
            assert_eq!(of(lasting), Class::Lasting);
        }
        assert_eq!(class_of(&ExecutionError::EmptyPlan), Class::Cut, "no node is up at present");
    }
}
