//! Who this process is among those that `torchrun`, `mpirun` or SLURM have started.

use super::RankError;

/// The port where ranks meet, if no variable names one.
const PORT: u16 = 29_511;
/// The variable that names it.
const PORT_VARIABLE: &str = "DEFT_PORT";

/// A launcher's variables: rank, ranks, and the rank among those of this host.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

/// A process among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This process's rank.
    pub rank: u32,
    /// Processes that there are.
    pub ranks: u32,
    /// Its number among those of this host: which GPU it takes.
    pub local: u32,
    /// Where they meet: `host:port`.
    pub address: String,
}

impl Launch {
    /// As the environment says: the variables of `torchrun`, Open MPI, MPICH and others with PMI, and SLURM, the first
    /// that are there. The host is `MASTER_ADDR`, or the first of SLURM's; the port is `DEFT_PORT`, or the one after
    /// `MASTER_PORT`, which is PyTorch's own, or 29511.
    ///
    /// # Errors
    /// [`RankError::Argument`], naming the variable that is missing or out of range.
    pub fn from_env() -> Result<Self, RankError> {
        Self::from(|name| std::env::var(name).ok())
    }

    /// Where ranks meet for one more communicator: so many ports further.
    ///
    /// # Errors
    /// [`RankError::Argument`]: there is no such port.
    pub fn address_of(&self, channel: u16) -> Result<String, RankError> {
        let wrong = || RankError::argument("address", &self.address, "host:port");
        let (host, port) = self.address.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let port = port.checked_add(channel).ok_or_else(|| {
            RankError::argument("address", &self.address, format!("{channel} below the last port"))
        })?;
        Ok(format!("{host}:{port}"))
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RankError> {
        let there = LAUNCHERS.iter().find(|names| variable(names[0]).is_some());
        let [rank, ranks, local] = *there.ok_or_else(|| {
            let names = LAUNCHERS.map(|names| names[0]).join(", ");
            RankError::argument(
                names,
                "not set",
                "set by torchrun, mpirun or srun, to this process's rank",
            )
        })?;
        let number = |name: &str| -> Result<u32, RankError> {
            let text = variable(name).unwrap_or_default();
            text.parse().map_err(|_| RankError::argument(name, format!("\"{text}\""), "a number"))
        };
        let (rank, ranks) = ((rank, number(rank)?), (ranks, number(ranks)?));
        if rank.1 >= ranks.1 {
            let expected = format!("below {}, {}", ranks.0, ranks.1);
            return Err(RankError::argument(rank.0, rank.1, expected));
        }
        let local = if variable(local).is_some() { number(local)? } else { rank.1 };
        let host = variable("MASTER_ADDR").or_else(|| first_host(&variable("SLURM_JOB_NODELIST")?));
        let host = match host {
            Some(host) => host,
            None if ranks.1 == 1 => "127.0.0.1".to_owned(),
            None => {
                let expected = "set to the host of rank 0";
                return Err(RankError::argument("MASTER_ADDR", "not set", expected));
            }
        };
        let port = match (variable(PORT_VARIABLE), variable("MASTER_PORT")) {
            (Some(_), _) => number(PORT_VARIABLE)?,
            (None, Some(_)) => number("MASTER_PORT")?.saturating_add(1),
            (None, None) => PORT.into(),
        };
        let port = u16::try_from(port)
            .map_err(|_| RankError::argument(PORT_VARIABLE, port, "below 65536"))?;
        Ok(Self { rank: rank.1, ranks: ranks.1, local, address: format!("{host}:{port}") })
    }
}

/// The first host of SLURM's list: `gpu[07-09,12],cpu1` begins with `gpu07`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find(['[', ',']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let number = rest.strip_prefix('[').unwrap_or_default();
    let number = &number[..number.find(['-', ',', ']']).unwrap_or(number.len())];
    let host = format!("{name}{number}");
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Launch, String> {
        let of = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Launch::from(of).map_err(|error| error.to_string())
    }

    fn expected(rank: u32, ranks: u32, local: u32, address: &str) -> Result<Launch, String> {
        Ok(Launch { rank, ranks, local, address: address.to_owned() })
    }

    #[test]
    fn each_launcher_s_variables_are_read() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(launch(&torchrun), expected(3, 8, 1, "10.0.0.1:29501"));
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("MASTER_ADDR", "here"),
            ("DEFT_PORT", "7000"),
        ];
        assert_eq!(launch(&mpirun), expected(1, 2, 1, "here:7000"));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "6"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_JOB_NODELIST", "gpu[07-09,12],cpu1"),
        ];
        assert_eq!(launch(&slurm), expected(5, 6, 2, "gpu07:29511"));
        assert_eq!(
            launch(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]),
            expected(0, 1, 0, "127.0.0.1:29511")
        );
    }

    #[test]
    fn communicators_have_ports_of_their_own() {
        let at =
            |address: &str| Launch { rank: 0, ranks: 2, local: 0, address: address.to_owned() };
        assert_eq!(at("here:7000").address_of(1).unwrap(), "here:7001");
        assert_eq!(at("[::1]:7000").address_of(0).unwrap(), "[::1]:7000");
        assert!(at("here:65535").address_of(1).is_err() && at("here").address_of(0).is_err());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = launch(&[]).unwrap_err();
        assert!(error.starts_with("RANK, OMPI_COMM_WORLD_RANK, PMI_RANK, SLURM_PROCID is not set"));
        let error = launch(&[("RANK", "0"), ("WORLD_SIZE", "two")]).unwrap_err();
        assert_eq!(error, "WORLD_SIZE is \"two\"; it must be a number");
        let error = launch(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err();
        assert_eq!(error, "RANK is 2; it must be below WORLD_SIZE, 2");
        let error = launch(&[("RANK", "0"), ("WORLD_SIZE", "2")]).unwrap_err();
        assert_eq!(error, "MASTER_ADDR is not set; it must be set to the host of rank 0");
        let port = [("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "65535")];
        assert_eq!(launch(&port).unwrap_err(), "DEFT_PORT is 65536; it must be below 65536");
    }

    #[test]
    fn a_list_s_first_host_is_spelled_out() {
        for (list, first) in [("a,b", "a"), ("n[1,3]", "n1"), ("n-[01-02]", "n-01"), ("one", "one")]
        {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
        assert_eq!(first_host(""), None);
    }
}
