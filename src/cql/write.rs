//! How rows come to a cluster: in as few requests as may be, and what is refused together apart.

use futures::{StreamExt, stream};
use scylla::statement::batch::{Batch, BatchType};

use super::error::Class;
use super::route::home;
use super::together::{Group, Parcel, SPAN_BYTES, Write, gather, pack};
use super::{AT_ONCE, ATTEMPT, Attempt, Cluster, Error};

impl Cluster {
    /// Writes all of these rows, in any order, and returns when each is acknowledged. Where a connection breaks it fails at once: a node that
    /// begins anew may have lost rows that came before these, see [`Cluster::restarts`]. Rows that went together and are refused together go each alone.
    ///
    /// # Errors
    /// The first; any of the rows may then be there or not.
    pub async fn write(&self, writes: Vec<Write>) -> Result<(), Error> {
        let packs = self.packs(gather(writes)).await?;
        let mut sending = stream::iter(packs.into_iter().map(|pack| self.send_rows(pack))).buffer_unordered(AT_ONCE);
        while let Some(sent) = sending.next().await {
            sent?;
        }
        Ok(())
    }

    /// Writes rows and removals of one partition of one table: all of it is there or nothing, whoever reads, for they are one mutation.
    ///
    /// # Errors
    /// As for [`Cluster::write`]; [`Error::Refused`] where it is too large, some MiB.
    pub async fn write_whole(&self, writes: Vec<Write>) -> Result<(), Error> {
        self.send(&writes.iter().collect::<Vec<_>>()).await
    }

    /// The same of many partitions, in any order: of each, in the order given, why it was refused, if it was.
    ///
    /// # Errors
    /// The first that is no refusal; any of the partitions' may then be there or not.
    pub async fn write_wholes(&self, wholes: Vec<Vec<Write>>) -> Result<Vec<Option<String>>, Error> {
        let packs = self.packs(wholes).await?;
        let mut sending = stream::iter(packs.into_iter().map(|pack| self.send_pack(pack))).buffer_unordered(AT_ONCE);
        let mut told = Vec::new();
        while let Some(sent) = sending.next().await {
            told.extend(sent?.into_iter().map(|(place, _, refused)| (place, refused)));
        }
        told.sort_unstable();
        Ok(told.into_iter().map(|(_, refused)| refused).collect())
    }

    /// Groups as they go in one request, each with its place.
    async fn packs(&self, groups: Vec<Group>) -> Result<Vec<Vec<(usize, Group)>>, Error> {
        let mut parcels = Vec::with_capacity(groups.len());
        for group in &groups {
            parcels.push(if groups.len() > 1 { self.parcel(group).await? } else { Parcel::ALONE });
        }
        let mut groups: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
        let mut take = |place: usize| Some((place, groups.get_mut(place)?.take()?));
        Ok(pack(&parcels).into_iter().map(|places| places.into_iter().filter_map(&mut take).collect()).collect())
    }

    /// What decides with which others a group goes.
    async fn parcel(&self, group: &[Write]) -> Result<Parcel, Error> {
        let mut parcel = Parcel::ALONE;
        for write in group {
            let statement = self.prepare(write.cql).await?;
            match write.size(&statement) {
                Some(bytes) if parcel.bytes + bytes <= SPAN_BYTES => parcel.bytes += bytes,
                // Nothing has room beside it, or it will be refused.
                _ => return Ok(Parcel::ALONE),
            }
            if parcel.home.is_none() {
                parcel.home = home(&self.replicas(&statement, &write.values));
            }
        }
        Ok(parcel)
    }

    /// Sends groups together, or each alone where that is refused; tells of each why it is refused alone, if it is.
    async fn send_pack(&self, pack: Vec<(usize, Group)>) -> Result<Vec<(usize, Group, Option<String>)>, Error> {
        let writes: Vec<&Write> = pack.iter().flat_map(|(_, group)| group).collect();
        let together = refusal(self.send(&writes).await)?;
        let is_alone = pack.len() == 1;
        let mut told = Vec::with_capacity(pack.len());
        for (place, group) in pack {
            let refused = match &together {
                Some(_) if !is_alone => refusal(self.send(&group.iter().collect::<Vec<_>>()).await)?,
                together => together.clone(),
            };
            told.push((place, group, refused));
        }
        Ok(told)
    }

    /// The same, and the rows of a group that is refused each alone.
    async fn send_rows(&self, pack: Vec<(usize, Group)>) -> Result<(), Error> {
        for (_, group, refused) in self.send_pack(pack).await? {
            match refused {
                None => {}
                Some(why) if group.len() == 1 => return Err(Error::Refused(why)),
                Some(_) => {
                    for write in &group {
                        self.send(&[write]).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends rows in one request. Those of one partition are one mutation.
    async fn send(&self, writes: &[&Write]) -> Result<(), Error> {
        let attempted = match writes {
            [] => return Ok(()),
            [Write { cql, values, .. }] => {
                let statement = self.prepare(cql).await?;
                let attempt = || -> Attempt<'_, _> { Box::pin(self.session.execute_unpaged(&statement, values)) };
                self.try_until(Class::Cut, ATTEMPT, cql, attempt).await
            }
            several => {
                let mut batch = Batch::new(BatchType::Unlogged);
                batch.set_is_idempotent(true);
                for write in several {
                    batch.append_statement(self.prepare(write.cql).await?);
                }
                let values: Vec<_> = several.iter().map(|write| &write.values).collect();
                let mut statements: Vec<&str> = several.iter().map(|write| write.cql).collect();
                statements.sort_unstable();
                statements.dedup();
                let attempt = || -> Attempt<'_, _> { Box::pin(self.session.batch(&batch, &values)) };
                self.try_until(Class::Cut, ATTEMPT, &statements.join("; "), attempt).await
            }
        };
        attempted.map(drop)
    }
}

/// Why it is refused; None where it is not.
///
/// # Errors
/// Any other.
fn refusal(sent: Result<(), Error>) -> Result<Option<String>, Error> {
    match sent {
        Ok(()) => Ok(None),
        Err(Error::Refused(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}
