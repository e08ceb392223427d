/* Reading clusters: a file of their own or a mapping in a plan. */
#ifndef TANDEM_MODEL_CLUSTER_READ_H
#define TANDEM_MODEL_CLUSTER_READ_H

#include "model/cluster.h"
#include "model/fields.h"

/*
 * The cluster that `node` of `file` stands for: a path relative to that file, or an inline mapping.
 * What is wrong is added to r->diags, with the cluster's own file, line and column; NULL if there
 * was any error.
 */
const td_cluster *td_cluster_read(td_reader *r, const td_yaml *node, const char *file,
                                  const char *path);

#endif
