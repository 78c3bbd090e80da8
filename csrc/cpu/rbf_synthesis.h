#pragma once
// What the synthetic vectors and their cosines share: which members stand in which columns, the
// softmax khat of a block of anchors, and the kernel matrices of the clusters.
//
// For one clustering, members are sorted by cluster: scores are one product, and everything behind
// it is a product with a cluster's own columns. When every anchor has its own clustering, columns
// are the members as they come, and a cluster is a mask over them.

#include <ATen/Dispatch.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <string_view>

#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm {

// Anchors [first, + rows); columns are members.
struct Anchors {
  int64_t first, rows;
  Tensor q;           // [rows, D]
  Tensor assignment;  // [rows, M] with one clustering per anchor, else undefined
  Tensor scores;      // [rows, M] q x^T
  Tensor khat;        // [rows, M]
  Tensor weights;     // [rows, M] of rows() in the vectors: khat, or A^-1 khat
};

// The arguments of a synthesis, rows in the precision that they are computed in.
struct Problem {
  Tensor q, x;        // [N, D], [M, D]
  Tensor assignment;  // [M] or [N, M]
  OptionalTensor anchor_ids, member_ids;
  int64_t num_clusters;
  double sigma, ridge;
  bool kam;
  // What a forward pass leaves for its backward pass, if anything: q x^T by columns, of which there
  // may be more than members in clusters. To be written, or known.
  Tensor scores = {};
  bool known = false;

  Problem(const Tensor& anchors, const Tensor& members, const Tensor& assignment,
          const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
          double sigma, std::string_view weights, double ridge)
      : q(wide(anchors)),
        x(wide(members)),
        assignment(assignment),
        anchor_ids(anchor_ids),
        member_ids(member_ids),
        num_clusters(num_clusters),
        sigma(sigma),
        ridge(ridge),
        kam(weights == "kam") {}

  void use(const Tensor& kept, bool there) {
    scores = if_kept(kept);
    known = there && scores.defined();
  }

  // Tall clusters, which have nothing in common but the anchors, come one after another: then one
  // cluster's matrices are there at a time.
  bool one_by_one() const {
    return kam && assignment.dim() == 1 && num_clusters > 1 && x.size(0) > num_clusters * x.size(1);
  }

  // Calls visit(k, the problem in which cluster k is the only one).
  template <typename Visit>
  void for_each_alone(Visit&& visit) const {
    Problem own = *this;
    own.num_clusters = 1;
    int64_t first = 0;
    for (int64_t k = 0; k < num_clusters; ++k) {
      const Tensor inside = assignment.eq(k);
      own.assignment = at::where(inside, 0, -1);
      if (scores.defined()) {
        const auto columns = inside.sum().item<int64_t>();
        own.scores = scores.narrow(1, first, columns);
        first += columns;
      }
      visit(k, own);
    }
  }

  // Sums the gradients of anchors and members that gradient(problem, grad) returns of every cluster
  // alone; those of members may be undefined.
  template <typename Gradient>
  std::tuple<Tensor, Tensor> sum_of_gradients(const Tensor& grad, Gradient&& gradient) const {
    Tensor of_anchors, of_members;
    for_each_alone([&](int64_t k, const Problem& own) {
      const auto [of_q, of_x] = gradient(own, grad.narrow(1, k, 1));
      of_anchors = k ? of_anchors.add_(of_q) : of_q;
      if (of_x.defined()) of_members = k ? of_members.add_(of_x) : of_x;
    });
    return {of_anchors, of_members};
  }
};

// A cluster's columns, their members' rows x and, where they are asked for, matrices: all but
// values in fp64.
struct Cluster {
  int64_t first, size;
  Tensor x;        // [size, D]
  Tensor kernel;   // [size, size] e^(-|x_i - x_j|^2 / 2 sigma^2)
  Tensor inverse;  // [size, size] A^-1, for one clustering
  Tensor gram;     // [size, size] x x^T
  Tensor values;   // [size, D] A^-1 x: vectors are khat times these

  // With more members than D its matrices are not there.
  bool tall() const { return values.defined() && !inverse.defined(); }
  // What weights make vectors of.
  const Tensor& rows() const { return values.defined() ? values : x; }
};

// The members' gradient, gathered over all anchors, in column order.
struct MemberGradient {
  Tensor rows;   // [M, D]
  Tensor total;  // [M]: of q x^T - |x|^2 / 2, whose second term is left to the end
  // Per cluster [size, size] in fp64: of its kernel matrix, and what its members are multiplied
  // with. One for all clusters when they share their columns.
  std::vector<Tensor> kernel, products;
  // Per cluster with values [size, D], dL/dV: times A^-1, or in fp64 where A^-1 is not there.
  std::vector<Tensor> values;
};

class Synthesis {
 public:
  // with_grams: keep x x^T where it is the cheaper way to products of vectors with members.
  Synthesis(const Problem& problem, bool with_grams);

  int64_t size() const { return q_.size(0); }
  int64_t dimension() const { return q_.size(1); }
  int64_t num_clusters() const { return static_cast<int64_t>(clusters_.size()); }
  const Cluster& cluster(int64_t k) const { return clusters_[k]; }
  at::TensorOptions options() const { return q_.options(); }
  // [N, K]: has the cluster any member for the anchor? Known once all blocks were visited.
  const Tensor& valid() const { return valid_; }

  // Calls visit(block) for all anchors, in increasing order.
  template <typename Visit>
  void for_each_block(Visit&& visit) {
    for (int64_t n = 0; n < size(); n += most_rows_)
      visit(block(n, std::min(most_rows_, size() - n)));
  }

  // The columns of cluster k in a matrix [rows, M]; those of members elsewhere are 0.
  Tensor columns(const Tensor& all, const Anchors& block, int64_t k) const;
  // Writes the columns of cluster k into a matrix that was 0 there.
  void put_columns(Tensor& all, const Anchors& block, int64_t k, Tensor part) const;

  MemberGradient member_gradient() const;
  // Adds what the gradient of a block's vectors of cluster k [rows, D] is to what they are made of.
  void add_rows(const Anchors& block, int64_t k, const Tensor& grad, MemberGradient& members) const;
  int64_t matrix_of(int64_t k) const { return per_anchor() ? 0 : k; }
  // From the gradient of a block's weights to that of q x^T; the members get the rest.
  Tensor scores_gradient(const Anchors& block, const Tensor& of_weights,
                         MemberGradient& members) const;
  // Sends the gradient of q x^T to the block's anchors, and to the members if they have one.
  void spread(const Anchors& block, const Tensor& of_scores, Tensor& grad_anchors,
              MemberGradient* members) const;
  // The gradient of the members as they came.
  Tensor finish(MemberGradient& members) const;

 private:
  bool per_anchor() const { return assignment_.defined(); }
  Anchors block(int64_t first, int64_t rows);
  Groups groups(const Anchors& block, int64_t r) const;
  template <typename T, typename Visit>
  void for_each_part(const Anchors& block, int64_t r, T* row, const T* other, Visit&& visit) const;
  template <typename T>
  void softmax(const Anchors& block);

  void add_matrices(bool with_grams);
  Tensor gram_of(const Tensor& x) const;
  Tensor kernel_of(Tensor gram) const;
  Tensor kernel_of_members(const Tensor& index) const;
  Tensor factor_of(Tensor kernel) const;
  bool weighs() const;
  Tensor solve(const Anchors& block, const Tensor& right) const;
  void kernel_backward(const Anchors& block, const Tensor& of_khat, MemberGradient& members) const;
  Tensor kernel_to_products(const Tensor& kernel, const Tensor& grad) const;
  Tensor values_backward(const Cluster& cluster, const Tensor& of_values) const;

  bool kam_;
  double sigma_, ridge_;
  int64_t num_members_, most_rows_;
  Tensor kept_;  // [N, M] by columns, or undefined
  bool known_;
  Tensor q_, x_, half_square_, valid_;  // x [M, D] and |x|^2 / 2 [M] in column order
  Tensor order_, cluster_of_column_;    // with one clustering: every column's member and cluster
  Tensor assignment_;                   // [N, M] with one clustering per anchor
  std::optional<SameId> same_;
  std::vector<Cluster> clusters_;
};

}  // namespace itm
